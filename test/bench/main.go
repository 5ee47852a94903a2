// Command bench measures weft beside its peers on one machine and says which goals it meets.
//
// It builds a laboratory of network namespaces, runs every arm in turn under the protocol of
// docs/benchmarks.md, prints a table and writes every single value to bin/bench-TIME.json. It sends
// no packet outside its own namespaces and leaves nothing behind. It is not a test: `make test`
// has the deterministic stand-ins. The measuring itself is internal/bench.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"iter"
	"maps"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"weft/internal/bench"
	"weft/internal/netset"
	"weft/test/bench/lab"
)

// options are the flags.
type options struct {
	quick    bool
	rounds   int
	duration time.Duration
	warmup   time.Duration
	patience time.Duration // to wait for a quiet machine before a round
	noisy    bool
	rows     []string
	places   []string
	families []netset.Family
	pods     int
	idle     time.Duration
	out      string
	peers    bool
	policies int // of the Y rows; 0: the goal table's size
	changes  int
	weft     string // directory of weft and weft-cni
}

func main() {
	err := start()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() > 0 {
		os.Exit(exit.ExitCode())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func start() error {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case "_serve":
			return serve()
		case "_scale":
			return scaleMain(os.Args[2:])
		case "_measure":
			return measure(os.Args[2:])
		}
	}
	o, err := parse(os.Args[1:])
	if err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return nil
		}
		return err
	}
	if os.Geteuid() != 0 {
		return errors.New("needs root: it makes network namespaces")
	}
	if os.Getenv(lab.IsolatedEnv) == "" {
		if o.peers {
			if err := lab.BuildPeers(); err != nil {
				fmt.Fprintln(os.Stderr, "bench: peers:", err)
			}
		}
		return lab.Isolate(os.Args[1:])
	}
	if err := lab.PrivateMounts(); err != nil {
		return err
	}
	return o.bench()
}

// parse reads the flags.
func parse(args []string) (*options, error) {
	o := &options{}
	fs := flag.NewFlagSet("bench", flag.ContinueOnError)
	fs.BoolVar(&o.quick, "quick", false, "a few minutes: 5 rounds of 0.5 s on one CPU, IPv4, 60 pods, 10 s idle")
	fs.IntVar(&o.rounds, "rounds", 11, "quiet rounds of each comparison")
	fs.DurationVar(&o.duration, "duration", 3*time.Second, "of one measurement")
	fs.DurationVar(&o.warmup, "warmup", 500*time.Millisecond, "before one measurement")
	fs.DurationVar(&o.patience, "patience", 30*time.Second, "to wait for a quiet machine before a round")
	fs.BoolVar(&o.noisy, "noisy", false, "use rounds however loud the machine is: checks functions, measures nothing")
	rows := fs.String("rows", strings.Join(allRows(), ","), "rows of the goal table to run")
	places := fs.String("places", "1cpu,2cpu", "both sides on one CPU, or one each")
	families := fs.String("families", "4", "4, 6 or 4,6")
	fs.IntVar(&o.pods, "pods", 250, "pods of the burst and CNI rows")
	fs.DurationVar(&o.idle, "idle", time.Minute, "how long the agents idle for rows A1 and A2")
	fs.IntVar(&o.policies, "policies", 0, "of the rows Y1 to Y3, with as many pods as go with them; 0: the size of the goal table")
	fs.IntVar(&o.changes, "changes", 400, "of each kind that rows Y2 and Y3 measure")
	fs.StringVar(&o.out, "out", "bin", "directory of the report")
	fs.StringVar(&o.weft, "weft", "bin", "directory of the weft and weft-cni binaries")
	fs.BoolVar(&o.peers, "peers", false, "build flannel and etcd first, unless PEER_FLANNEL_BIN and PEER_ETCD_BIN are set")
	if err := fs.Parse(args); err != nil {
		return nil, err
	}
	if o.quick {
		set := map[string]bool{}
		fs.Visit(func(f *flag.Flag) { set[f.Name] = true })
		for name, value := range map[string]string{
			"rounds": "5", "duration": "500ms", "warmup": "100ms", "patience": "3s", "places": "1cpu", "pods": "60", "idle": "10s",
		} {
			if !set[name] {
				_ = fs.Set(name, value) // the values are ours
			}
		}
	}
	o.rows, o.places = strings.Split(*rows, ","), strings.Split(*places, ",")
	for _, r := range o.rows {
		if !slices.Contains(allRows(), r) {
			return nil, fmt.Errorf("-rows: %q is not one of %s", r, strings.Join(allRows(), ","))
		}
	}
	for _, p := range o.places {
		if p != "1cpu" && p != "2cpu" {
			return nil, fmt.Errorf("-places: %q is neither 1cpu nor 2cpu", p)
		}
	}
	for _, f := range netset.Families() {
		if slices.Contains(strings.Split(*families, ","), fmt.Sprint(int(f))) {
			o.families = append(o.families, f)
		}
	}
	if len(o.families) == 0 {
		return nil, fmt.Errorf("-families: %q has neither 4 nor 6", *families)
	}
	return o, nil
}

// allRows are the rows that can be asked for; a group runs if any of its rows is.
func allRows() []string {
	return []string{"P1", "P3", "P4", "P5", "P6", "P9", "C1", "C2", "C3", "C4", "C5", "A1", "A2", "A3", "A4", "A5", "P7", "Y1", "Y2", "Y3", "Y4", "Y5"}
}

func (o *options) wants(rows ...string) bool {
	return slices.ContainsFunc(rows, func(r string) bool { return slices.Contains(o.rows, r) })
}

// bench runs everything that was asked for. A part that cannot run is a note, not the end.
func (o *options) bench() error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer stop()
	self, err := os.Executable()
	if err != nil {
		return err
	}
	if o.weft, err = filepath.Abs(o.weft); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "weft-bench-")
	if err != nil {
		return err
	}
	r := &rig{&lab.Lab{Ctx: ctx, Dir: dir, Self: self, Weft: o.weft, Log: func(f string, a ...any) { fmt.Fprintf(os.Stderr, f+"\n", a...) }}}
	defer func() {
		if err := r.Close(); err != nil {
			r.Log("bench: %v", err)
		}
	}()
	rep := newReport()
	rep.Noisy = o.noisy
	for _, part := range []struct {
		rows []string
		run  func(*rig, *options, *report) error
	}{
		{[]string{"P1", "P3", "P4", "Y5"}, sameNodeTraffic},
		{[]string{"P5", "P6"}, crossNodeTraffic},
		{[]string{"P9"}, agentDeath},
		{[]string{"C1", "C2", "C3", "C4", "C5"}, cniRows},
		{[]string{"A1", "A2", "A4", "A5"}, agentRows},
		{[]string{"Y1", "Y2", "Y3", "A3", "Y4", "P7"}, policyRows},
	} {
		if !o.wants(part.rows...) || ctx.Err() != nil {
			continue
		}
		if err := part.run(r, o, rep); err != nil {
			rep.note("%s: %v", strings.Join(part.rows, ","), err)
		}
	}
	rep.judgeTraffic()
	if err := os.MkdirAll(o.out, 0o755); err != nil {
		return err
	}
	path, err := rep.write(o.out)
	if err != nil {
		return err
	}
	if err := rep.table(os.Stdout); err != nil {
		return err
	}
	fmt.Println("every value:", path)
	if n := rep.count("FAIL"); n > 0 {
		return fmt.Errorf("%d gates are not met", n)
	}
	return ctx.Err()
}

// serve is the measuring server in an arm's namespace.
func serve() error {
	lis, err := new(net.ListenConfig).Listen(context.Background(), "tcp", fmt.Sprintf(":%d", bench.DefaultPort))
	if err != nil {
		return err
	}
	return bench.Serve(context.Background(), lis, true)
}

// measure is the measuring client: address and spec in, result out.
func measure(args []string) error {
	if len(args) != 2 {
		return errors.New("_measure ADDRESS SPEC")
	}
	var spec bench.Spec
	if err := json.Unmarshal([]byte(args[1]), &spec); err != nil {
		return err
	}
	res, err := bench.Run(context.Background(), bench.Target{Host: args[0]}, spec)
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(res)
}

func mapKeys[K comparable, V any](m map[K]V) iter.Seq[K] { return maps.Keys(m) }
