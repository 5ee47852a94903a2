package lab

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"weft/internal/host"
)

// NodeVerb stops, starts or reboots a node. Stop is a power cut: the namespaces are
// torn down; /etc, /opt and /var/lib survive.
func (l *Lab) NodeVerb(ctx context.Context, node, verb string) error {
	if !slices.Contains(l.NodeNames(), node) {
		return fmt.Errorf("lab %s has no node %q: it has %s", l.opts.Name, node, strings.Join(l.NodeNames(), ", "))
	}
	switch verb {
	case "stop", "reboot":
		h, err := host.Open(l.hostDir(node))
		if err == nil {
			err = h.Stop(ctx)
		}
		if err != nil && !errors.Is(err, host.ErrNotRunning) {
			return err
		}
		if verb == "stop" {
			return nil
		}
	case "start":
	default:
		return fmt.Errorf("%q is not stop, start or reboot; a command comes after --", verb)
	}
	return exclusive(ctx, l.opts.Name, func() error { return l.start(ctx) })
}

// ProcessVerb stops, starts, restarts or kills a process of a node: "agent" or
// "runtime". It returns when a process that is to run does.
func (l *Lab) ProcessVerb(ctx context.Context, node, process, verb string) error {
	h, err := l.Host(node)
	if err != nil {
		return err
	}
	before, err := status(ctx, h, process)
	if err != nil {
		return err
	}
	switch verb {
	case "stop":
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		return h.StopProcess(ctx, process)
	case "start":
		err = h.StartProcess(ctx, process)
		before.PID = 0 // if it ran, it still does
	case "restart":
		err = h.RestartProcess(ctx, process)
	case "kill":
		err = h.SignalProcess(ctx, process, unix.SIGKILL)
	default:
		return fmt.Errorf("%q is not stop, start, restart or kill", verb)
	}
	if err != nil {
		return err
	}
	running := errors.New("running")
	err = h.Watch(ctx, func(list []host.Status) error {
		for _, p := range list {
			if p.Name == process && p.State == host.Running && p.PID != before.PID {
				return running
			}
		}
		return nil
	})
	if errors.Is(err, running) {
		return nil
	}
	return err
}

func status(ctx context.Context, h *host.Host, process string) (host.Status, error) {
	list, err := h.Processes(ctx)
	for _, p := range list {
		if p.Name == process {
			return p, nil
		}
	}
	if err == nil {
		err = fmt.Errorf("%s has no process %q", h.Name(), process)
	}
	return host.Status{}, err
}
