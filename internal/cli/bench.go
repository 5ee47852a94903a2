package cli

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"strconv"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"sigs.k8s.io/yaml"

	"weft/internal/bench"
	"weft/internal/netset"
)

// benchFlags are the flags that all modes share.
type benchFlags struct {
	spec   bench.Spec
	port   uint16
	only   map[netset.Family]*bool // -4 and -6
	output string
}

// BenchCommand is `weft bench`: the measuring tool between any two hosts.
func BenchCommand() *cobra.Command {
	var server, priority bool
	var listen string
	var port uint16
	cmd := &cobra.Command{
		Use:   "bench",
		Short: "Measure the network between two hosts",
		Long: `Measures throughput, latency and connection rate between two hosts, with the CPU time spent.

Start "weft bench --server" on one host, then a test on the other: "weft bench stream HOST".
The server answers anybody who can reach its ports (PORT and PORT+1): stop it after use.`,
		Example: `  weft bench --server                        # on db-host
  weft bench stream db-host                  # bulk TCP, on another host
  weft bench rr db-host -d 10s -o json       # round trips: p50, p99, p99.9
  weft bench crr -6 db-host                  # connections a second, over IPv6
  weft bench udp db-host --pps --size 64     # datagrams a second and their loss
  weft bench flows db-host --flows 2000      # round trips on 2000 connections at once`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !server {
				return cmd.Help()
			}
			return benchServe(cmd.Context(), cmd.ErrOrStderr(), net.JoinHostPort(listen, strconv.Itoa(int(port))), priority)
		},
	}
	cmd.Flags().BoolVar(&server, "server", false, "answer the tests of others until interrupted")
	cmd.Flags().StringVar(&listen, "listen", "", "server: address to listen on (all)")
	cmd.Flags().BoolVar(&priority, "allow-priority", false, "server: let clients choose the priority of its measuring thread")
	cmd.Flags().Uint16Var(&port, "port", bench.DefaultPort, "server: control port; the tests use the next one")
	for _, m := range []struct {
		mode  bench.Mode
		short string
	}{
		{bench.Stream, "Bulk TCP: goodput, as the receiver counts it"},
		{bench.RR, "TCP round trips on one connection: rate and latency"},
		{bench.CRR, "TCP connections: connect, one byte each way, close"},
		{bench.UDPRR, "UDP: round trips, or datagrams a second with --pps"},
		{bench.Flows, "TCP round trips on many connections at once"},
	} {
		cmd.AddCommand(benchMode(m.mode, m.short))
	}
	return cmd
}

// benchServe runs the server until SIGINT or SIGTERM.
func benchServe(ctx context.Context, log io.Writer, address string, priority bool) error {
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, unix.SIGTERM)
	defer stop()
	lis, err := new(net.ListenConfig).Listen(ctx, "tcp", address)
	if err != nil {
		return fmt.Errorf("listen on %s: %w", address, err)
	}
	_, _ = fmt.Fprintf(log, "listening on %s\n", lis.Addr())
	return bench.Serve(ctx, lis, priority)
}

// benchMode is the subcommand of one mode; the two UDP modes share one.
func benchMode(mode bench.Mode, short string) *cobra.Command {
	f := &benchFlags{spec: bench.Spec{Mode: mode}, only: map[netset.Family]*bool{}}
	var pps bool
	use := string(mode)
	if mode == bench.UDPRR {
		use = "udp"
	}
	cmd := &cobra.Command{
		Use: use + " HOST", Short: short, Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if pps {
				f.spec.Mode = bench.UDPPPS
			}
			return f.run(cmd.Context(), cmd.OutOrStdout(), args[0])
		},
	}
	fl := cmd.Flags()
	fl.DurationVarP(&f.spec.Duration, "duration", "d", 5*time.Second, "how long to measure")
	fl.DurationVar(&f.spec.Warmup, "warmup", time.Second, "how long to run before")
	fl.IntVar(&f.spec.Size, "size", 0, "bytes of a write or message (stream 131072, others 1)")
	fl.IntVar(&f.spec.Buffer, "buffer", 0, "socket buffers in bytes (0: the kernel tunes them)")
	fl.IntVar(&f.spec.ClientCPU, "client-cpu", bench.AnyCPU, "pin the client's thread to this CPU")
	fl.IntVar(&f.spec.ServerCPU, "server-cpu", bench.AnyCPU, "pin the server's thread to this CPU")
	fl.IntVar(&f.spec.Priority, "priority", 0, "of the measuring threads: -20..-1 a nice level, 1..99 SCHED_FIFO; for busy machines")
	fl.Uint16Var(&f.port, "port", bench.DefaultPort, "the server's control port")
	for _, family := range netset.Families() {
		digit := strconv.Itoa(int(family))
		f.only[family] = fl.BoolP("ipv"+digit, digit, false, family.String()+" only")
	}
	fl.StringVarP(&f.output, "output", "o", "table", "table, json or yaml")
	switch mode {
	case bench.Stream, bench.RR, bench.CRR, bench.Flows:
		fl.StringVar(&f.spec.Congestion, "congestion", "cubic", `TCP congestion control ("": the host's default)`)
	case bench.UDPRR:
		fl.BoolVar(&pps, "pps", false, "send as fast as one thread can, and count what arrives")
	}
	if mode == bench.Flows {
		fl.IntVar(&f.spec.Flows, "flows", 100, "connections at once")
	}
	cmd.MarkFlagsMutuallyExclusive("ipv4", "ipv6")
	return cmd
}

// run does the test and prints it.
func (f *benchFlags) run(ctx context.Context, out io.Writer, host string) error {
	show, err := benchPrinter(f.output)
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt)
	defer stop()
	network := "tcp"
	for family, only := range f.only {
		if *only {
			network = "tcp" + strconv.Itoa(int(family))
		}
	}
	r, err := bench.Run(ctx, bench.Target{Host: host, Port: f.port, Network: network}, f.spec)
	if err != nil {
		return err
	}
	return show(out, r)
}

// benchPrinter returns what writes a result in the format of -o.
func benchPrinter(format string) (func(io.Writer, *bench.Result) error, error) {
	switch format {
	case "table":
		return benchTable, nil
	case "json":
		return func(w io.Writer, r *bench.Result) error {
			e := json.NewEncoder(w)
			e.SetIndent("", "  ")
			return e.Encode(r)
		}, nil
	case "yaml":
		return func(w io.Writer, r *bench.Result) error {
			raw, err := yaml.Marshal(r)
			if err != nil {
				return err
			}
			_, err = w.Write(raw)
			return err
		}, nil
	}
	return nil, fmt.Errorf("output: %q is not one of table, json, yaml", format)
}

// benchTable writes a result for people: one line of a name and a value each.
func benchTable(w io.Writer, r *bench.Result) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	var errs []error
	row := func(name, format string, a ...any) {
		_, err := fmt.Fprintf(tw, name+"\t"+format+"\n", a...)
		errs = append(errs, err)
	}
	row("TEST", "%s, %s, %s, %.2f s", r.Spec.Mode, r.Remote, r.Family, r.Seconds)
	unit := "100k"
	if r.Spec.Mode == bench.Stream {
		row("GOODPUT", "%.3f Gbit/s", r.BitsPerSecond/1e9)
		unit = "GB"
	} else {
		row("RATE", "%.0f /s", r.PerSecond)
	}
	if r.Spec.Mode == bench.Flows {
		row("SETUP", "%d connections in %s", r.Spec.Flows, r.Setup.Round(time.Microsecond))
	}
	if l := r.Latency; l != nil {
		row("LATENCY", "p50 %s  p90 %s  p99 %s  p99.9 %s  max %s", micro(l.P50), micro(l.P90), micro(l.P99), micro(l.P999), micro(l.Max))
	}
	if r.Spec.Mode == bench.UDPRR || r.Spec.Mode == bench.UDPPPS {
		row("LOST", "%d", r.Lost)
	}
	row("CPU", "%.3f s/%s in the measuring threads, %.3f s/%s on both hosts", r.ThreadCost(), unit, r.SystemCost(), unit)
	if cc := r.Client.Congestion; cc != "" || r.Server.Congestion != "" {
		row("CONGESTION", "client %s, server %s", cmp.Or(cc, "?"), cmp.Or(r.Server.Congestion, "?"))
	}
	return errors.Join(append(errs, tw.Flush())...)
}

func micro(d time.Duration) string { return fmt.Sprintf("%.1fus", float64(d.Nanoseconds())/1e3) }
