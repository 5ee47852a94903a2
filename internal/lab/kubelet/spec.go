package kubelet

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"weft/internal/host"
	"weft/internal/lab/probe"
)

// Volatile are directories that programs expect to write to; hosts and pods have their own.
func Volatile() []string { return []string{"/run", "/tmp", "/dev/shm"} }

// podSpec is the pod as a host: one process for each container that has a command,
// the responder for all others.
func podSpec(pod *corev1.Pod, netns string, addrs []netip.Addr) (spec host.Spec, warnings []string) {
	var hosts strings.Builder
	hosts.WriteString("127.0.0.1 localhost\n::1 localhost\n")
	for _, a := range addrs {
		fmt.Fprintf(&hosts, "%s %s\n", a, pod.Name)
	}
	name := cmp.Or(pod.Spec.Hostname, pod.Name)
	spec = host.Spec{
		Name: name[:min(len(name), 63)], Netns: netns, ReadOnly: true, Private: []string{"/var"}, Volatile: Volatile(),
		Masks: map[string]string{"/etc/hosts": hosts.String()},
	}
	if pod.Spec.HostNetwork {
		spec.Name, spec.Masks = pod.Spec.NodeName, nil
	}
	restart := map[corev1.RestartPolicy]host.Restart{
		corev1.RestartPolicyNever: host.RestartNever, corev1.RestartPolicyOnFailure: host.RestartOnFailure,
	}[pod.Spec.RestartPolicy]
	var r probe.Responder
	for _, c := range pod.Spec.InitContainers {
		if len(c.Command) > 0 {
			spec.Processes = append(spec.Processes, process(pod, c, addrs, restart, true))
		} else {
			warnings = append(warnings, "init container "+c.Name+" has no command: skipped")
		}
	}
	for _, c := range pod.Spec.Containers {
		if len(c.Command) > 0 {
			spec.Processes = append(spec.Processes, process(pod, c, addrs, restart, false))
			continue
		}
		for _, p := range c.Ports {
			r.Ports = append(r.Ports, probe.Port{Protocol: strings.ToLower(string(p.Protocol)), Port: uint16(p.ContainerPort)})
		}
	}
	warnings = append(warnings, r.Unsupported()...)
	spec.Data = r.Encode()
	return spec, warnings
}

func process(pod *corev1.Pod, c corev1.Container, addrs []netip.Addr, restart host.Restart, once bool) host.Process {
	env := []string{"HOSTNAME=" + pod.Name}
	for _, e := range c.Env {
		env = append(env, e.Name+"="+envValue(pod, e, addrs))
	}
	expand := func(s string) string { return expandVars(s, env) }
	args := make([]string, 0, len(c.Command)+len(c.Args))
	for _, a := range slices.Concat(c.Command, c.Args) {
		args = append(args, expand(a))
	}
	return host.Process{Name: c.Name, Args: args, Env: env, Dir: c.WorkingDir, Restart: restart, Once: once}
}

// envValue is a variable's value: literal, or a field that the lab knows.
func envValue(pod *corev1.Pod, e corev1.EnvVar, addrs []netip.Addr) string {
	if e.ValueFrom == nil || e.ValueFrom.FieldRef == nil {
		return e.Value
	}
	switch f := e.ValueFrom.FieldRef.FieldPath; f {
	case "metadata.name":
		return pod.Name
	case "metadata.namespace":
		return pod.Namespace
	case "metadata.uid":
		return string(pod.UID)
	case "spec.nodeName":
		return pod.Spec.NodeName
	case "status.podIP", "status.podIPs":
		var all []string
		for _, a := range addrs {
			all = append(all, a.String())
		}
		if f == "status.podIP" {
			all = all[:min(len(all), 1)]
		}
		return strings.Join(all, ",")
	}
	return ""
}

// expandVars replaces $(NAME) as Kubernetes does in commands and arguments.
func expandVars(s string, env []string) string {
	for _, e := range env {
		k, v, _ := strings.Cut(e, "=")
		s = strings.ReplaceAll(s, "$("+k+")", v)
	}
	return s
}
