package ipam_test

import (
	"bufio"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"weft/internal/ipam"
	"weft/internal/run"
)

// child runs the calling test again in another process, which finds dir in the environment.
func child(t *testing.T, dir string) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), "TEST_IPAM_DIR="+dir)
	return cmd
}

func realOptions() ipam.Options {
	return ipam.Options{Boot: "b", Pools: prefixes("10.0.0.0/24", "fd00::/64"), Quarantine: time.Millisecond}
}

// TestKilled kills a real process that allocates on a real disk, again and again: what it was told is there.
func TestKilled(t *testing.T) {
	if dir := os.Getenv("TEST_IPAM_DIR"); dir != "" {
		allocateForEver(dir)
	}
	dir := filepath.Join(t.TempDir(), "state")
	want := map[string]bool{} // what the processes were told, by ID
	told := 0
	for round := range 25 {
		cmd := child(t, dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		unsure := "" // asked, not answered: either is right
		for n := rand.N(120); lines.Scan(); n-- {
			word, id, _ := strings.Cut(lines.Text(), " ")
			switch word {
			case "ask":
				unsure = id
			case "has", "gone":
				want[id] = word == "has"
				unsure = ""
				told++
			case "bad":
				t.Fatal(id)
			}
			if n == 0 {
				_ = cmd.Process.Kill()
			}
		}
		_ = cmd.Wait()
		a, err := ipam.Open(ipam.Dir(dir), run.System(), realOptions())
		if err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		if a.Salvaged() != nil {
			t.Fatalf("round %d: %v", round, a.Salvaged())
		}
		for id, has := range want {
			if _, ok := a.Get(id); ok != has && id != unsure {
				t.Fatalf("round %d: %s: there %v, want %v", round, id, ok, has)
			}
		}
		if _, ok := a.Get(unsure); unsure != "" {
			want[unsure] = ok
		}
		if err := a.Close(); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("25 kills, %d answers, none forgotten", told)
}

// allocateForEver says on stdout what it asks for and what it is told.
func allocateForEver(dir string) {
	fmt.Println() // behind the test's name
	a, err := ipam.Open(ipam.Dir(dir), run.System(), realOptions())
	if err != nil {
		fmt.Println("bad", err)
		os.Exit(1)
	}
	for {
		r := request("ns", fmt.Sprint("p", rand.IntN(100)))
		id := r.Endpoint.ID
		fmt.Println("ask", id)
		if _, ok := a.Get(id); ok {
			err = a.Release("DEL", id)
			fmt.Println("gone", id)
		} else {
			_, err = a.Reserve(r)
			fmt.Println("has", id)
		}
		if err != nil {
			fmt.Println("bad", err)
			os.Exit(1)
		}
	}
}

// TestDiskReallyFull fills a small file system under the journal.
func TestDiskReallyFull(t *testing.T) {
	if dir := os.Getenv("TEST_IPAM_DIR"); dir != "" {
		fillDisk(t, dir)
		return
	}
	if os.Getuid() != 0 {
		t.Skip("mounting needs root")
	}
	cmd := child(t, t.TempDir())
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS} // the mount is the child's alone
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

func fillDisk(t *testing.T, dir string) {
	if err := errors.Join(syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""), syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=128k")); err != nil {
		t.Fatal(err)
	}
	o := realOptions()
	a, err := ipam.Open(ipam.Dir(dir), run.System(), o)
	if err != nil {
		t.Fatal(err)
	}
	first, err := a.Reserve(request("ns", "first"))
	if err != nil {
		t.Fatal(err)
	}
	ballast := filepath.Join(dir, "ballast")
	_ = os.WriteFile(ballast, make([]byte, 1<<20), 0o600) // as much as there is room for
	var ids []string
	for i := range 250 {
		l, err := a.Reserve(request("ns", fmt.Sprint("p", i)))
		if err != nil {
			if !errors.Is(err, ipam.ErrJournal) || !errors.Is(err, syscall.ENOSPC) {
				t.Fatal(err)
			}
			break
		}
		ids = append(ids, l.Endpoint.ID)
	}
	if len(ids) == 250 {
		t.Fatal("the disk is not full")
	}
	if err := a.Release("DEL", first.Endpoint.ID); err != nil && !errors.Is(err, ipam.ErrJournal) {
		t.Fatal(err)
	}
	if _, ok := a.Get(first.Endpoint.ID); ok {
		t.Fatal("DEL did not work")
	}
	second, err := ipam.Open(ipam.Dir(dir), run.System(), o) // an agent that starts now
	if err != nil || len(second.Leases()) < len(ids) {
		t.Fatalf("start on a full disk: %v", err)
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Reserve(request("ns", "again")); err != nil {
		t.Fatalf("after the disk had room again: %v", err)
	}
	third, err := ipam.Open(ipam.Dir(dir), run.System(), o)
	if err != nil || len(third.Leases()) != len(ids)+1 {
		t.Fatalf("%d leases were written, want %d; %v", len(third.Leases()), len(ids)+1, err)
	}
}

// FuzzOpen reads arbitrary journals: refused or read, never a crash, and a salvaged one can be read again.
func FuzzOpen(f *testing.F) {
	d := newDisk(rand.New(rand.NewPCG(1, 1)))
	a, err := ipam.Open(d, run.System(), realOptions())
	if err != nil {
		f.Fatal(err)
	}
	for i := range 3 {
		l, err := a.Reserve(request("ns", fmt.Sprint("p", i)))
		if err != nil {
			f.Fatal(err)
		}
		_ = a.Commit(l.Endpoint.ID)
		if i == 1 {
			_ = a.Release("DEL", l.Endpoint.ID)
		}
	}
	good, _ := d.ReadFile(ipam.JournalName)
	f.Add(good)
	f.Add(good[:len(good)/2])
	f.Add([]byte("00000000 1 []\n"))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, data []byte) {
		d := newDisk(rand.New(rand.NewPCG(1, 1)))
		d.files[ipam.JournalName] = &inode{synced: data}
		o := realOptions()
		o.Salvage = true
		a, err := ipam.Open(d, run.System(), o)
		if err != nil {
			t.Fatalf("salvage: %v", err)
		}
		n := len(a.Leases())
		if _, err := a.Reserve(request("other", "x")); err != nil && !errors.Is(err, ipam.ErrTaken) && !errors.Is(err, ipam.ErrExhausted) && !errors.Is(err, ipam.ErrExists) {
			t.Fatal(err)
		} else if err == nil {
			n++
		}
		o.Salvage = false
		if b, err := ipam.Open(d, run.System(), o); err != nil || len(b.Leases()) != n {
			t.Fatalf("after the salvage: %v", err)
		}
	})
}
