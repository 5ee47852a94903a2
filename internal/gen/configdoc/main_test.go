package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const (
	sourceFile = "../../model/config.go"
	pageFile   = "../../../docs/reference/configuration.md"
)

func TestThePageIsUpToDate(t *testing.T) {
	want, err := render(sourceFile)
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(pageFile)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s is not what configdoc writes: run go generate ./internal/gen/...", pageFile)
	}
	for _, line := range []string{
		"| `type` | string | `vxlan` | ",
		"| `pools` | [ipam.pools[]](#ipampools) | | ",
		"| `cidrs` | list of CIDR | | ",
		"## `ipam.pools[]`",
		"replaces `nonMasqueradeCIDRs` and `masqLinkLocal` when",
	} {
		if !strings.Contains(strings.ReplaceAll(string(want), "|  |", "| |"), line) {
			t.Errorf("the page lacks %q", line)
		}
	}
}

func TestAFieldWithoutCommentIsRefused(t *testing.T) {
	src, err := os.ReadFile(sourceFile)
	if err != nil {
		t.Fatal(err)
	}
	const comment = "	// LogLevel is \"debug\", \"info\", \"warn\" or \"error\".\n"
	if !bytes.Contains(src, []byte(comment)) {
		t.Fatal("the comment that this test removes is no longer there")
	}
	tmp := filepath.Join(t.TempDir(), "config.go")
	if err := os.WriteFile(tmp, bytes.Replace(src, []byte(comment), nil, 1), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := render(tmp); err == nil || !strings.Contains(err.Error(), "logLevel has no comment") {
		t.Errorf("got %v", err)
	}
}
