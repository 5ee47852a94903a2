// Package lab runs the scenarios of this directory as a user would: with `weft lab test`.
package lab

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func TestScripts(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	dir := t.TempDir()
	build := exec.Command("go", "build", "-o", dir, "weft/cmd/weft", "weft/cmd/weft-cni")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	scripts, err := filepath.Glob("*.txtar")
	if err != nil || len(scripts) == 0 {
		t.Fatalf("no scripts: %v", err)
	}
	labs := filepath.Join(dir, "labs")
	for _, s := range scripts {
		t.Run(strings.TrimSuffix(s, ".txtar"), func(t *testing.T) {
			cmd := exec.Command(filepath.Join(dir, "weft"), "lab", "test", s)
			cmd.Env = append(os.Environ(), "WEFT_LAB_DIR="+labs)
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Errorf("%v\n%s", err, out)
			} else {
				t.Logf("\n%s", out)
			}
			if left, _ := os.ReadDir(labs); len(left) > 0 {
				t.Errorf("left in %s: %v", labs, left)
			}
		})
	}
}
