package kubelet

import (
	"cmp"
	"fmt"
	"net/netip"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"weft/internal/host"
	"weft/internal/lab/objects"
)

// podStatus is what the kubelet knows of a pod beyond its sandbox.
type podStatus struct {
	processes []host.Status
	started   time.Time
	message   string // why it does not run
}

// publish writes the pod's status into its object, if it differs from what is there.
func (w *worker) publish(pod *corev1.Pod) {
	want := w.statusOf(pod)
	err := w.k.store.Update(objects.Ref{Kind: "Pod", Namespace: pod.Namespace, Name: pod.Name}, w.uid, func(o *objects.Object) bool {
		have, _, _ := unstructured.NestedMap(o.Object, "status")
		if objects.Same(have, want) {
			return false
		}
		o.Object["status"] = want
		return true
	})
	if err != nil {
		w.k.log.Error("write status", "pod", pod.Name, "err", err)
	}
}

func (w *worker) statusOf(pod *corev1.Pod) map[string]any {
	st := map[string]any{"phase": string(corev1.PodPending)}
	if w.status.message != "" {
		st["message"] = w.status.message
	}
	s := w.sandbox
	if s == nil || len(s.Addrs) == 0 {
		st["conditions"] = []any{map[string]any{"type": "Ready", "status": "False"}}
		return st
	}
	phase, ready := phaseOf(w.status.processes)
	st["phase"] = string(phase)
	st["podIP"] = s.Addrs[0].String()
	st["podIPs"] = ipList(s.Addrs)
	if node, err := w.hostAddrs(); err == nil && len(node) > 0 {
		st["hostIP"] = node[0].String()
		st["hostIPs"] = ipList(node)
	}
	if len(s.Warnings) > 0 {
		st["message"] = strings.Join(s.Warnings, "; ")
	}
	st["conditions"] = []any{map[string]any{"type": "Ready", "status": map[bool]string{true: "True", false: "False"}[ready]}}
	st["containerStatuses"] = containerStatuses(pod, w.status.processes)
	return st
}

func ipList(addrs []netip.Addr) []any {
	out := make([]any, len(addrs))
	for i, a := range addrs {
		out[i] = map[string]any{"ip": a.String()}
	}
	return out
}

// phaseOf sums up what the containers with a command do. A pod without any is
// served by the responder and always ready.
func phaseOf(list []host.Status) (phase corev1.PodPhase, ready bool) {
	phase, ready = corev1.PodRunning, true
	ended, failed := 0, false
	for _, p := range list {
		switch p.State {
		case host.Running:
		case host.Exited:
			ended++
			failed = failed || p.ExitCode != 0
			ready = ready && p.ExitCode == 0
		default:
			ready = false
		}
	}
	if ended > 0 && ended == len(list) {
		phase, ready = corev1.PodSucceeded, false
		if failed {
			phase = corev1.PodFailed
		}
	}
	return phase, ready
}

func containerStatuses(pod *corev1.Pod, list []host.Status) []any {
	byName := map[string]host.Status{}
	for _, p := range list {
		byName[p.Name] = p
	}
	var out []any
	for _, c := range pod.Spec.Containers {
		st := map[string]any{"name": c.Name, "image": c.Image, "imageID": "", "ready": true, "restartCount": int64(0)}
		if p, ok := byName[c.Name]; ok {
			st["ready"] = p.State == host.Running
			st["restartCount"] = int64(p.Restarts)
			switch p.State {
			case host.Running:
				st["state"] = map[string]any{"running": map[string]any{}}
			case host.Exited, host.Stopped:
				st["state"] = map[string]any{"terminated": map[string]any{"exitCode": int64(p.ExitCode)}}
			default:
				reason, why := "Waiting", p.Message
				if p.Restarts > 0 || p.ExitCode != 0 {
					reason = "CrashLoopBackOff"
					why = cmp.Or(why, fmt.Sprintf("exited with %d", p.ExitCode))
				}
				st["state"] = map[string]any{"waiting": map[string]any{"reason": reason, "message": why}}
			}
		}
		out = append(out, st)
	}
	return out
}
