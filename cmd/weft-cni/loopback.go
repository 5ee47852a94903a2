package main

import (
	"encoding/json"
	"fmt"
	"io"
	"runtime"

	"golang.org/x/sys/unix"

	"weft/internal/api"
)

// loopbackName is the name under which this program is the plugin "loopback".
const loopbackName = "loopback"

// loopback sets lo up in a pod's network namespace. Container runtimes execute a plugin of this name for every pod
// before that of the network. Most distributions bring it along; on a node without it the agent makes a link to
// this program. It needs no agent, and keeps no state: lo ends with its namespace.
func loopback(env func(string) string, stdin io.Reader, stdout io.Writer) int {
	version, err := loopbackDo(env, stdin, stdout)
	if err == nil {
		return 0
	}
	emit(stdout, struct {
		CNIVersion string `json:"cniVersion"`
		*api.Error
	}{version, api.AsError(err)})
	return 1
}

func loopbackDo(env func(string) string, stdin io.Reader, stdout io.Writer) (string, error) {
	conf := struct {
		CNIVersion string          `json:"cniVersion"`
		PrevResult json.RawMessage `json:"prevResult"`
	}{CNIVersion: newest}
	if err := json.NewDecoder(io.LimitReader(stdin, maxConf)).Decode(&conf); err != nil {
		return newest, api.Errorf(api.CodeDecode, "the network configuration of loopback: %v", err)
	}
	switch command := env("CNI_COMMAND"); command {
	case "VERSION":
		emit(stdout, struct {
			CNIVersion string   `json:"cniVersion"`
			Supported  []string `json:"supportedVersions"`
		}{conf.CNIVersion, supported()})
	case "DEL", "GC", "STATUS":
	case "ADD", "CHECK":
		netns := env("CNI_NETNS")
		if err := setUp("lo", netns); err != nil {
			return conf.CNIVersion, api.Errorf(api.CodeIO, "set lo up in %q: %v", netns, err)
		}
		switch {
		case command == "CHECK":
		case conf.PrevResult != nil:
			emit(stdout, conf.PrevResult)
		default:
			type device struct {
				Name    string `json:"name"`
				MAC     string `json:"mac"`
				Sandbox string `json:"sandbox"`
			}
			emit(stdout, struct {
				CNIVersion string   `json:"cniVersion"`
				Interfaces []device `json:"interfaces"`
			}{conf.CNIVersion, []device{{"lo", "00:00:00:00:00:00", netns}}})
		}
	default:
		return conf.CNIVersion, api.Errorf(api.CodeInvalidEnv, "CNI_COMMAND=%q is not ADD, DEL, CHECK, GC, STATUS or VERSION", command)
	}
	return conf.CNIVersion, nil
}

// setUp sets an interface of a network namespace up. The calling thread stays there: the program ends after it.
func setUp(name, netns string) error {
	runtime.LockOSThread()
	ns, err := unix.Open(netns, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(ns)
	if err := unix.Setns(ns, unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter: %w", err)
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	req, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFFLAGS, req); err != nil {
		return err
	}
	req.SetUint16(req.Uint16() | unix.IFF_UP)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, req)
}
