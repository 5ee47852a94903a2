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
	documented := filepath.Join(dir, "documented.txtar")
	if err := os.WriteFile(documented, []byte(fromDocs(t)), 0o600); err != nil {
		t.Fatal(err)
	}
	scripts = append(scripts, documented)
	labs := filepath.Join(dir, "labs")
	for _, s := range scripts {
		t.Run(strings.TrimSuffix(filepath.Base(s), ".txtar"), func(t *testing.T) {
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

// fromDocs is the script that the user guide shows: its indented block that begins with "up".
func fromDocs(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile("../../docs/lab.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(b), "\n    up ")
	if !ok {
		t.Fatal("docs/lab.md shows no script")
	}
	var out strings.Builder
	for i, line := range strings.Split("    up "+rest, "\n") {
		if i > 0 && line != "" && !strings.HasPrefix(line, "    ") {
			break
		}
		out.WriteString(strings.TrimPrefix(line, "    ") + "\n")
	}
	return out.String()
}
