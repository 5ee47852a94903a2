package cni

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// NetworkName is the name of the network in the configuration that Install writes.
const NetworkName = "weft"

// pluginName is the file name of the plugin, and its type in the configuration.
const pluginName = "weft-cni"

// Installation says where the plugin and its configuration go.
type Installation struct {
	Plugin   string // path of the binary to install
	BinDir   string
	ConfDir  string
	ConfName string
	Socket   string // of the agent
}

// Install puts the plugin in place, if what is there differs, and then the configuration, each atomically. A
// runtime that sees the configuration finds a plugin that works, and an agent that serves it.
func Install(i Installation) error {
	binary, err := os.ReadFile(i.Plugin)
	if err != nil {
		return fmt.Errorf("read the plugin: %w", err)
	}
	if err := place(i.BinDir, pluginName, binary, 0o755); err != nil {
		return err
	}
	if err := placeLoopback(i.BinDir); err != nil {
		return err
	}
	conf, err := Conflist(i.Socket)
	if err != nil {
		return err
	}
	return place(i.ConfDir, i.ConfName, conf, 0o644)
}

// placeLoopback makes the plugin loopback, which runtimes execute for every pod, a link to ours, unless the node has
// one. A link to our plugin is recognised as ours by its target; what is there already is never replaced.
func placeLoopback(dir string) error {
	path := filepath.Join(dir, "loopback")
	if _, err := os.Stat(path); err == nil {
		return nil
	}
	if target, err := os.Readlink(path); err == nil && target != pluginName {
		return nil // somebody else's, whose target comes later
	}
	if err := os.Symlink(pluginName, path); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("install %s: %w", path, err)
	}
	return nil
}

// Remove takes the configuration away, so that the runtime starts no more pods with it. The plugin stays: running pods
// still need its DEL.
func Remove(i Installation) error {
	if err := os.Remove(filepath.Join(i.ConfDir, i.ConfName)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// Conflist returns the network configuration list. cniVersion is what containerd 1.7's library (libcni 1.1) still takes;
// newer ones choose 1.1.0 from cniVersions, and then call STATUS and GC too.
func Conflist(socket string) ([]byte, error) {
	type plugin struct {
		Type         string          `json:"type"`
		Capabilities map[string]bool `json:"capabilities"`
		Socket       string          `json:"socket"`
	}
	doc, err := json.MarshalIndent(struct {
		CNIVersion  string   `json:"cniVersion"`
		CNIVersions []string `json:"cniVersions"`
		Name        string   `json:"name"`
		Plugins     []plugin `json:"plugins"`
	}{
		"1.0.0",
		[]string{"0.4.0", "1.0.0", "1.1.0"},
		NetworkName,
		[]plugin{{pluginName, map[string]bool{"portMappings": true, "bandwidth": true, "ips": true, "mac": true}, socket}},
	}, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encode the network configuration: %w", err)
	}
	return append(doc, '\n'), nil
}

// place makes a file be data, through a hidden file beside it that no runtime reads.
func place(dir, name string, data []byte, mode os.FileMode) error {
	path := filepath.Join(dir, name)
	if have, err := os.ReadFile(path); err == nil && bytes.Equal(have, data) {
		if st, err := os.Stat(path); err == nil && st.Mode().Perm() == mode {
			return nil
		}
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("install %s: %w", path, err)
	}
	tmp, err := os.CreateTemp(dir, "."+name+".*")
	if err != nil {
		return fmt.Errorf("install %s: %w", path, err)
	}
	defer os.Remove(tmp.Name())
	_, err = tmp.Write(data)
	if err = errors.Join(err, tmp.Chmod(mode), tmp.Sync(), tmp.Close()); err != nil {
		return fmt.Errorf("install %s: %w", path, err)
	}
	if err := os.Rename(tmp.Name(), path); err != nil {
		return fmt.Errorf("install %s: %w", path, err)
	}
	return nil
}
