package kubelet

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"weft/internal/lab/objects"
)

// What a pod becomes: a process for a container with a command, ports for the others.
func TestPodSpec(t *testing.T) {
	objs, err := objects.ParseManifests("test", strings.NewReader(`
apiVersion: v1
kind: Pod
metadata: {name: p, namespace: ns1}
spec:
  restartPolicy: OnFailure
  initContainers: [{name: init, command: ["true"]}]
  containers:
  - {name: web, ports: [{containerPort: 80, hostPort: 8080}, {containerPort: 53, protocol: UDP}]}
  - name: run
    command: [echo, "$(WHO)"]
    args: ["$(IP)"]
    env:
    - {name: WHO, value: me}
    - {name: IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
`))
	if err != nil {
		t.Fatal(err)
	}
	pod, err := objects.Decode[corev1.Pod](objs[0])
	if err != nil {
		t.Fatal(err)
	}
	spec, warnings := podSpec(pod, "/ns", []netip.Addr{netip.MustParseAddr("192.0.2.1")})
	if len(warnings) > 0 || len(spec.Processes) != 2 || !spec.Processes[0].Once || spec.Processes[1].Restart != "on-failure" {
		t.Errorf("%+v, %v", spec.Processes, warnings)
	}
	if got := spec.Processes[1].Args; !slices.Equal(got, []string{"echo", "me", "192.0.2.1"}) {
		t.Errorf("arguments %q", got)
	}
	if got := string(spec.Data); got != `{"ports":[{"protocol":"tcp","port":80},{"protocol":"udp","port":53}]}` && got != `{"ports":[{"port":80},{"protocol":"udp","port":53}]}` {
		t.Errorf("responder: %s", got)
	}
	rt, err := runtimeConf(pod, &sandbox{ID: "x"})
	if err != nil || fmt.Sprint(rt.CapabilityArgs["portMappings"]) != "[{8080 80 tcp }]" {
		t.Errorf("%v, %v", rt, err)
	}
}
