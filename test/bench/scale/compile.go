package scale

import (
	"iter"
	"os"
	"runtime"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"weft/internal/compile/policy"
	"weft/internal/model"
)

// Compiled is what compiling a whole cluster took (row Y1).
type Compiled struct {
	Seconds    float64 `json:"seconds"`
	CPU        float64 `json:"cpu"`  // seconds of all threads, the garbage collector's included
	Heap       float64 `json:"heap"` // MB that the engine holds afterwards, the objects not counted
	Owners     int     `json:"owners"`
	PolicyMS   float64 `json:"policyMs"` // one policy changed
	PodMS      float64 `json:"podMs"`    // one pod of a known identity came
	PolicyKeys int     `json:"policyKeys"`
	PodKeys    int     `json:"podKeys"`
}

// objects by key are a Snapshot.
type objects map[model.Key]model.Object

// Get implements model.Snapshot.
func (o objects) Get(k model.Key) model.Object { return o[k] }

// All implements model.Snapshot.
func (o objects) All(kind model.Kind) iter.Seq[model.Object] {
	return func(yield func(model.Object) bool) {
		for k, v := range o {
			if k.Kind == kind && !yield(v) {
				return
			}
		}
	}
}

// Compile gives all objects of a cluster to an Engine, and then one change each of a policy and of a pod.
func Compile(size Size) Compiled {
	s, keys := objects{}, []model.Key{}
	for _, o := range size.objects() {
		s[o.Key()] = o
		keys = append(keys, o.Key())
	}
	preferred()
	before, cpu, began := heap(), cpuSeconds(), time.Now()
	e := policy.New(thisNode)
	out := Compiled{Owners: len(e.Update(s, keys)), Seconds: time.Since(began).Seconds(), CPU: cpuSeconds() - cpu}
	out.Heap = heap() - before

	change := func(o model.Object) (ms float64, owners int) {
		s[o.Key()] = o
		began := time.Now()
		owners = len(e.Update(s, []model.Key{o.Key()}))
		return float64(time.Since(began).Nanoseconds()) / 1e6, owners
	}
	out.PolicyMS, out.PolicyKeys = change(size.policy(7, "a3"))
	fresh := size.pod(size.Local + size.namespaces() + 7)
	fresh.Name, fresh.Addrs = "fresh", size.pod(size.Local+size.Remote).Addrs
	out.PodMS, out.PodKeys = change(fresh)
	runtime.KeepAlive(e)
	return out
}

// heap is how many MB are in use after a garbage collection.
func heap() float64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return float64(m.HeapAlloc) / 1e6
}

// cpuSeconds is what this process has used so far.
func cpuSeconds() float64 {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return float64(u.Utime.Nano()+u.Stime.Nano()) / 1e9
}

// preferred makes this process a real-time one, as round trips are, so that what others run on the machine waits. Without the
// right to it, it does nothing.
func preferred() {
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return
	}
	for _, t := range tasks {
		if id, err := strconv.Atoi(t.Name()); err == nil { // threads that are made later inherit it
			_ = unix.SchedSetAttr(id, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_RR, Priority: 1}, 0)
		}
	}
}
