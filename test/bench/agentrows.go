package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"weft/internal/bench"
	"weft/test/bench/lab"
)

// agentRows are rows A1, A2, A4 and A5: what the daemon costs when nothing happens.
func agentRows(r *rig, o *options, rep *report) error {
	if o.wants("A5") {
		sizes(o, rep)
	}
	if !o.wants("A1", "A2", "A4") {
		return nil
	}
	ns, err := lab.Nodes("agent")
	if err != nil {
		return err
	}
	n, err := r.StartWeft(ns[0], 1, "vxlan")
	if err != nil {
		return err
	}
	if o.wants("A4") {
		if err := starts(o, rep, n); err != nil {
			return err
		}
	}
	pods, err := podsOf("agent", 10)
	if err != nil {
		return err
	}
	for i, pod := range pods {
		if err := lab.InNS(n.NS, func() error { _, err := n.Plugin.Add(fmt.Sprintf("idle%d", i), pod); return err }); err != nil {
			return err
		}
	}
	daemons := map[string]*lab.Process{"weft": n.Agent}
	if fns, err := lab.Nodes("agent-flannel"); err != nil {
		return err
	} else if f, err := r.StartFlannel("agent-flannel", "vxlan", fns); err != nil {
		rep.note("A1, A2: flannel left out: %v", err)
	} else {
		defer f.Stop()
		daemons["flannel"] = f.Daemons[0]
		rep.inform("A4", "exec to lease, warm etcd", "flannel", "ms", milliseconds(f.Ready[0]))
	}
	defer n.Stop()
	return r.idle(o, rep, daemons)
}

// sizes is row A5. The image is there if `make image` was run.
func sizes(o *options, rep *report) {
	for _, b := range []struct {
		path  string
		bound float64 // MB
	}{
		{filepath.Join(o.weft, "weft"), 45},
		{filepath.Join(o.weft, "weft-cni"), 6},
		{filepath.Join(o.weft, "weft-image-"+runtime.GOARCH+".tar"), 45},
		{os.Getenv(lab.FlannelEnv), 0},
	} {
		info, err := os.Stat(b.path)
		if err != nil {
			continue
		}
		name := filepath.Base(b.path)
		if b.bound == 0 {
			rep.inform("A5", "file size", name, "MB", float64(info.Size())/1e6)
			continue
		}
		rep.absolute("A5", "file size", name, "MB", float64(info.Size())/1e6, b.bound)
	}
}

// starts is row A4: exec until an ADD has been answered, from nothing and with a kernel that is set up already.
func starts(o *options, rep *report, n *lab.Node) error {
	if err := lab.Netns("agent.start"); err != nil {
		return err
	}
	var warm []float64
	for i := range max(3, o.rounds/2) {
		n.Kill()
		begin := time.Now()
		if err := n.Start(); err != nil {
			return err
		}
		id := fmt.Sprintf("start%d", i)
		if err := lab.InNS(n.NS, func() error { _, err := n.Plugin.Add(id, "agent.start"); return err }); err != nil {
			return err
		}
		warm = append(warm, milliseconds(time.Since(begin)))
		if err := lab.InNS(n.NS, func() error { return n.Plugin.Del(id, "agent.start") }); err != nil {
			return err
		}
	}
	rep.absolute("A4", "exec to ready, first start", "weft", "ms", milliseconds(n.Ready), 1000)
	rep.absolute("A4", "exec to ADD answered, restart, median", "weft", "ms", bench.Median(warm), 1000)
	rep.Samples = append(rep.Samples, sampleRow{Subject: "weft", What: "restart to ADD answered", Unit: "ms", Rounds: [][]float64{warm}})
	return nil
}

// vitals is what /proc tells of a process.
type vitals struct {
	rss, anon, file float64 // MB
	maps            float64 // MB of memory locked by BPF maps it holds
	cpu             float64 // seconds
	written         float64 // bytes to disk
	wakeups         float64 // voluntary context switches of all threads
	threads         float64
}

// readVitals reads them. The pid is that of the daemon itself: `ip netns exec` execs it.
func readVitals(pid int) (vitals, error) {
	dir := "/proc/" + strconv.Itoa(pid)
	status, err := os.ReadFile(dir + "/status")
	if err != nil {
		return vitals{}, err
	}
	var v vitals
	v.rss, v.anon, v.file = keyed(status, "VmRSS:")/1024, keyed(status, "RssAnon:")/1024, keyed(status, "RssFile:")/1024
	v.threads = keyed(status, "Threads:")
	stat, err := os.ReadFile(dir + "/stat")
	if err != nil {
		return v, err
	}
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:])) // from field 3, state
	for _, i := range []int{11, 12} {                                                   // utime, stime
		ticks, _ := strconv.ParseFloat(fields[i], 64)
		v.cpu += ticks / 100
	}
	io, err := os.ReadFile(dir + "/io")
	if err != nil {
		return v, err
	}
	v.written = keyed(io, "write_bytes:")
	tasks, _ := filepath.Glob(dir + "/task/*/status")
	for _, t := range tasks {
		raw, _ := os.ReadFile(t)
		v.wakeups += keyed(raw, "voluntary_ctxt_switches:")
	}
	seen := map[float64]bool{}
	infos, _ := filepath.Glob(dir + "/fdinfo/*")
	for _, f := range infos {
		raw, _ := os.ReadFile(f)
		if id := keyed(raw, "map_id:"); id != 0 && !seen[id] {
			seen[id] = true
			v.maps += keyed(raw, "memlock:") / 1e6
		}
	}
	return v, nil
}

// keyed finds "key value" at the beginning of a line.
func keyed(raw []byte, key string) float64 {
	for _, l := range strings.Split(string(raw), "\n") {
		if rest, ok := strings.CutPrefix(l, key); ok {
			v, _ := strconv.ParseFloat(strings.Fields(rest + " 0")[0], 64)
			return v
		}
	}
	return 0
}

// settle is how long a daemon is left alone before its idle time is measured.
const settle = 10 * time.Second

// idle is rows A1 and A2.
func (r *rig) idle(o *options, rep *report, daemons map[string]*lab.Process) error {
	time.Sleep(min(settle, o.idle))
	from := map[string]vitals{}
	var err error
	for name, p := range daemons {
		if from[name], err = readVitals(p.Process.Pid); err != nil {
			return err
		}
	}
	r.Log("idle for %v", o.idle)
	begin := time.Now()
	select {
	case <-time.After(o.idle):
	case <-r.Ctx.Done():
		return r.Ctx.Err()
	}
	seconds := time.Since(begin).Seconds()
	to := map[string]vitals{}
	for name, p := range daemons {
		if to[name], err = readVitals(p.Process.Pid); err != nil {
			return err
		}
	}
	for name, v := range to {
		limit := func(bound float64) float64 {
			if name == "weft" {
				return bound
			}
			return noBound()
		}
		rep.absolute("A1", "RSS", name, "MiB", v.rss, limit(30))
		rep.inform("A1", "RSS, anonymous", name, "MiB", v.anon)
		rep.inform("A1", "RSS, of files", name, "MiB", v.file)
		rep.absolute("A1", "BPF maps", name, "MB", v.maps, limit(8))
		rep.absolute("A2", "CPU", name, "% of a core", 100*(v.cpu-from[name].cpu)/seconds, limit(.2))
		rep.absolute("A2", "disk writes", name, "bytes", v.written-from[name].written, limit(0))
		rep.inform("A2", "wake-ups", name, "/s", (v.wakeups-from[name].wakeups)/seconds)
		rep.inform("A2", "threads", name, "", v.threads)
	}
	if f, ok := to["flannel"]; ok {
		rep.absolute("A1", "RSS over flannel's", "weft", "", to["weft"].rss/f.rss, 1)
	}
	forks, err := countForks(daemons["weft"].Process.Pid, o.idle/4)
	if err != nil {
		rep.note("A2 forks: %v", err)
		return nil
	}
	rep.absolute("A2", fmt.Sprintf("fork and exec in %v", o.idle/4), "weft", "", forks, 0)
	return nil
}

// countForks counts the processes, not the threads, that a process makes, with strace.
func countForks(pid int, during time.Duration) (float64, error) {
	strace, err := exec.LookPath("strace")
	if err != nil {
		return 0, err
	}
	file, err := os.CreateTemp("", "strace")
	if err != nil {
		return 0, err
	}
	defer func() { _ = os.Remove(file.Name()) }()
	cmd := lab.Program(strace, "-f", "-qq", "-e", "trace=fork,vfork,clone,clone3,execve", "-o", file.Name(), "-p", strconv.Itoa(pid))
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	time.Sleep(during)
	_ = cmd.Process.Signal(syscall.SIGINT)
	_ = cmd.Wait()
	raw, err := os.ReadFile(file.Name())
	n := 0.0
	for _, l := range strings.Split(string(raw), "\n") {
		if strings.Contains(l, "(") && !strings.Contains(l, "CLONE_THREAD") && !strings.Contains(l, "resumed") {
			n++
		}
	}
	return n, err
}
