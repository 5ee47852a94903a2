// Package script runs scenarios for people's CI: a txtar file with manifests and the
// commands that apply them and say what reaches what, in a lab of its own.
//
// It is not a test framework: it does only what a user can do with the command line,
// and the lab does the work.
package script

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/rogpeppe/go-internal/txtar"

	"weft/internal/host"
	"weft/internal/lab"
	"weft/internal/lab/objects"
)

// Help is the language of scripts, for help texts.
func Help() string {
	return `A script is a txtar archive: commands, then files as "-- name --" sections. One command a line,
# begins a comment, 'quotes' hold words together, ! before a command expects it to fail.

  up [--nodes N] [--subnets N] [--mtu M,…] [--ip-family F] [--backend B] [--config FILE]
                                  without it: up --nodes 2
  apply FILE…                     and wait until its pods are ready
  delete FILE… | delete KIND NAME…
  expect reachable|unreachable|refused|dropped SRC -> DST[:PORT][/PROTO] [family 4|6] [within 5s]
                                  consecutive ones are tried at the same time; unreachable is either refused
                                  (somebody says so at once) or dropped (nothing comes back)
  exec POD -- COMMAND…            inside a pod
  node NODE -- COMMAND…           on a node
  node NODE stop|start|reboot
  agent NODE kill|stop|start|restart
  wait [30s]                      until all pods are ready
  show TABLE NODE                 what "weft show TABLE" prints on the node
  stdout REGEXP                   the last command's output matches
  cmp FILE                        the last command's output is the file`
}

// Script runs scenario files.
type Script struct {
	Name    string // of an existing lab to run in; "": each script has its own
	Keep    bool   // leave the lab up
	Verbose bool   // print every command and what it printed
	Out     io.Writer
}

// step is one row of the report.
type step struct {
	line   int
	text   string
	result string
	took   time.Duration
	err    error
}

// scriptRun is one script being run.
type scriptRun struct {
	*Script
	file  string
	name  string
	lab   *lab.Lab
	owned bool // the lab is ours to take down
	dir   string
	last  string // output of the last command
	steps []step
}

// RunFile runs one script and prints its report. The error says what failed first.
func (s *Script) RunFile(ctx context.Context, file string) (err error) {
	ar, err := txtar.ParseFile(file)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "weft-lab-test-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	for _, f := range ar.Files {
		if !filepath.IsLocal(f.Name) {
			return fmt.Errorf("%s: section %q is not a file name", file, f.Name)
		}
		p := filepath.Join(dir, f.Name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(p), 0o755), os.WriteFile(p, f.Data, 0o644)); err != nil {
			return err
		}
	}
	r := &scriptRun{Script: s, file: file, dir: dir, name: scriptLab(file)}
	defer func() { err = errors.Join(err, r.finish(context.WithoutCancel(ctx))) }()
	return r.run(ctx, strings.Split(string(ar.Comment), "\n"))
}

// scriptLab is the name of a script's own lab: scripts may run at the same time.
func scriptLab(file string) string {
	base := strings.TrimSuffix(filepath.Base(file), filepath.Ext(file))
	base = strings.Trim(regexp.MustCompile(`[^a-z0-9]+`).ReplaceAllString(strings.ToLower(base), "-"), "-")
	return fmt.Sprintf("%.24s-%d", cmp.Or(base, "script"), os.Getpid())
}

// run executes all lines. A failed expectation is reported and the script goes on,
// so that the table shows all; any other failure ends it.
func (r *scriptRun) run(ctx context.Context, lines []string) error {
	var expects []step
	var failures []error
	flush := func() {
		failures = append(failures, r.expectAll(ctx, expects)...)
		expects = nil
	}
	for i, text := range lines {
		text = strings.TrimSpace(text)
		if text == "" || text[0] == '#' {
			continue
		}
		st := step{line: i + 1, text: text}
		if strings.HasPrefix(text, "expect ") {
			expects = append(expects, st)
			continue
		}
		flush()
		began := time.Now()
		st.err = r.command(ctx, text)
		st.took, st.result = time.Since(began), "ok"
		if st.err != nil {
			st.result = "FAILED"
		}
		r.report(st)
		if st.err != nil {
			return fmt.Errorf("%s:%d: %s: %w", r.file, st.line, text, st.err)
		}
	}
	flush()
	return errors.Join(failures...)
}

// report keeps a step for the table and prints it at once if wanted.
func (r *scriptRun) report(st step) {
	r.steps = append(r.steps, st)
	if !r.Verbose {
		return
	}
	fmt.Fprintf(r.Out, "> %s  (%s, %.0f ms)\n", st.text, st.result, float64(st.took.Microseconds())/1000)
	if r.last != "" && !strings.HasPrefix(st.text, "expect ") {
		fmt.Fprintf(r.Out, "%s\n", strings.TrimRight(r.last, "\n"))
	}
}

// expectAll tries all expectations at the same time and reports them in their order.
func (r *scriptRun) expectAll(ctx context.Context, steps []step) []error {
	if len(steps) == 0 {
		return nil
	}
	if err := r.needLab(ctx); err != nil {
		return []error{err}
	}
	var wg sync.WaitGroup
	for i := range steps {
		wg.Go(func() { r.expect(ctx, &steps[i]) })
	}
	wg.Wait()
	var errs []error
	for _, st := range steps {
		r.report(st)
		if st.err != nil {
			errs = append(errs, fmt.Errorf("%s:%d: %s: %w", r.file, st.line, st.text, st.err))
		}
	}
	return errs
}

// expect tries one expectation and fills in its result.
func (r *scriptRun) expect(ctx context.Context, st *step) {
	words, err := split(st.text)
	var e lab.Expectation
	if err == nil {
		e, err = parseExpect("default", words[1:])
	}
	began := time.Now()
	var results []lab.Result
	if err == nil {
		results, err = r.lab.Check(ctx, e)
	}
	st.took, st.err = time.Since(began), err
	var seen []string
	for _, x := range results {
		seen = append(seen, x.Target.String()+" "+x.Verdict())
	}
	st.result = strings.Join(seen, ", ")
	if err != nil {
		st.result = "FAILED: " + err.Error()
	}
}

// finish prints the table and takes the script's lab down.
func (r *scriptRun) finish(ctx context.Context) error {
	tw := tabwriter.NewWriter(r.Out, 0, 8, 2, ' ', 0)
	fmt.Fprintf(tw, "LINE\tSTEP\tTIME\tRESULT\n")
	for _, st := range r.steps {
		fmt.Fprintf(tw, "%d\t%s\t%.0f ms\t%s\n", st.line, st.text, float64(st.took.Microseconds())/1000, st.result)
	}
	err := tw.Flush()
	if r.lab == nil || !r.owned {
		return err
	}
	if r.Keep {
		fmt.Fprintf(r.Out, "lab %s is still up: weft lab get --name %s; weft lab down --name %s\n", r.name, r.name, r.name)
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	return errors.Join(err, lab.Down(ctx, r.name))
}

// command runs one line that is not an expectation.
func (r *scriptRun) command(ctx context.Context, text string) error {
	words, err := split(text)
	if err != nil {
		return err
	}
	negate := words[0] == "!"
	if negate {
		words = words[1:]
	}
	if len(words) == 0 {
		return errors.New("! without a command")
	}
	verbs := map[string]func(context.Context, []string) error{
		"up": r.up, "apply": r.apply, "delete": r.delete, "exec": r.exec, "node": r.node, "agent": r.agent,
		"wait": r.wait, "show": r.show, "stdout": r.stdout, "cmp": r.cmp,
	}
	verb := verbs[words[0]]
	if verb == nil {
		return fmt.Errorf("no such command; see `weft lab test --help`")
	}
	if !slices.Contains([]string{"up", "stdout", "cmp"}, words[0]) {
		if err := r.needLab(ctx); err != nil {
			return err
		}
		r.last = ""
	}
	err = verb(ctx, words[1:])
	switch {
	case negate && err == nil:
		return errors.New("it did not fail")
	case negate:
		r.last += err.Error() + "\n"
		return nil
	}
	return err
}

func (r *scriptRun) needLab(ctx context.Context) error {
	if r.lab != nil {
		return nil
	}
	if r.Name != "" {
		l, err := lab.Open(r.Name)
		r.lab = l
		return err
	}
	return r.up(ctx, []string{"--nodes", "2"})
}

func (r *scriptRun) up(ctx context.Context, args []string) error {
	if r.Name != "" {
		return fmt.Errorf("the script runs in lab %s, which is up", r.Name)
	}
	o := lab.Options{Name: r.name}
	for i := 0; i < len(args); i++ {
		flag, v, ok := strings.Cut(args[i], "=")
		if !ok {
			if i+1 == len(args) {
				return fmt.Errorf("%s needs a value", flag)
			}
			i++
			v = args[i]
		}
		if err := set(&o, flag, v, r.dir); err != nil {
			return err
		}
	}
	r.owned = true
	r.lab = lab.Unstarted(o) // so that finish takes down what failed half way
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	l, err := lab.Up(ctx, o)
	if l != nil {
		r.lab = l
	}
	return err
}

// set is one flag of `up`.
func set(o *lab.Options, flag, v, dir string) (err error) {
	switch flag {
	case "--nodes":
		o.Nodes, err = strconv.Atoi(v)
	case "--subnets":
		o.Subnets, err = strconv.Atoi(v)
	case "--mtu":
		for _, m := range strings.Split(v, ",") {
			n, aerr := strconv.Atoi(m)
			o.MTU, err = append(o.MTU, n), errors.Join(err, aerr)
		}
	case "--ip-family":
		o.IPFamily = v
	case "--backend":
		o.Backend = v
	case "--config":
		o.Config, err = lab.ReadConfig(filepath.Join(dir, v))
	default:
		return fmt.Errorf("no flag %s", flag)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", flag, err)
	}
	return nil
}

func (r *scriptRun) manifests(files []string) ([]*objects.Object, error) {
	if len(files) == 0 {
		return nil, errors.New("want FILE…")
	}
	paths := make([]string, len(files))
	for i, f := range files {
		paths[i] = filepath.Join(r.dir, f)
	}
	return objects.ReadManifests(strings.NewReader(""), paths...)
}

func (r *scriptRun) note(changes []lab.Change) {
	for _, c := range changes {
		r.last += c.Object + " " + c.What + "\n"
		for _, n := range c.Notes {
			r.last += "note: " + n + "\n"
		}
	}
}

func (r *scriptRun) apply(ctx context.Context, args []string) error {
	objs, err := r.manifests(args)
	if err != nil {
		return err
	}
	changes, err := r.lab.Apply("default", objs)
	r.note(changes)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	return r.lab.AwaitReady(ctx, changes...)
}

func (r *scriptRun) wait(ctx context.Context, args []string) error {
	limit := 30 * time.Second
	if len(args) > 0 {
		d, err := time.ParseDuration(args[0])
		if err != nil {
			return err
		}
		limit = d
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	return r.lab.AwaitReady(ctx)
}

func (r *scriptRun) delete(ctx context.Context, args []string) error {
	var objs []*objects.Object
	var err error
	if len(args) > 0 && filepath.Ext(args[0]) == "" {
		objs, err = r.lab.Get(args[0], "", args[1:]...)
	} else {
		objs, err = r.manifests(args)
	}
	if err != nil {
		return err
	}
	changes, err := r.lab.Delete("default", objs)
	r.note(changes)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	return r.lab.AwaitGone(ctx)
}

func (r *scriptRun) exec(ctx context.Context, args []string) error {
	if len(args) < 3 || args[1] != "--" {
		return errors.New("want exec POD -- COMMAND…")
	}
	pod, err := r.lab.Pod("default", args[0])
	if err != nil {
		return err
	}
	h, err := r.lab.PodHost(pod)
	if err != nil {
		return err
	}
	return r.runOn(ctx, h, args[2:])
}

func (r *scriptRun) node(ctx context.Context, args []string) error {
	if len(args) == 2 {
		return r.lab.NodeVerb(ctx, args[0], args[1])
	}
	if len(args) < 3 || args[1] != "--" {
		return errors.New("want node NODE -- COMMAND…, or node NODE stop|start|reboot")
	}
	h, err := r.lab.Host(args[0])
	if err != nil {
		return err
	}
	return r.runOn(ctx, h, args[2:])
}

func (r *scriptRun) agent(ctx context.Context, args []string) error {
	if len(args) != 2 {
		return errors.New("want agent NODE kill|stop|start|restart")
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	return r.lab.ProcessVerb(ctx, args[0], lab.AgentProcess, args[1])
}

func (r *scriptRun) show(ctx context.Context, args []string) error {
	if len(args) != 2 {
		return errors.New("want show TABLE NODE")
	}
	h, err := r.lab.Host(args[1])
	if err != nil {
		return err
	}
	return r.runOn(ctx, h, []string{lab.WeftPath(), "show", args[0]})
}

func (r *scriptRun) runOn(ctx context.Context, h *host.Host, args []string) error {
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	err := h.Run(cmd)
	r.last = out.String()
	if err != nil {
		return fmt.Errorf("%w: %s", err, strings.TrimSpace(r.last))
	}
	return nil
}

func (r *scriptRun) stdout(_ context.Context, args []string) error {
	if len(args) != 1 {
		return errors.New("want stdout REGEXP")
	}
	re, err := regexp.Compile("(?m)" + args[0])
	if err != nil {
		return err
	}
	if !re.MatchString(r.last) {
		return fmt.Errorf("the output does not match:\n%s", r.last)
	}
	return nil
}

func (r *scriptRun) cmp(_ context.Context, args []string) error {
	if len(args) != 1 {
		return errors.New("want cmp FILE")
	}
	b, err := os.ReadFile(filepath.Join(r.dir, args[0]))
	if err != nil {
		return err
	}
	if string(b) != r.last {
		return fmt.Errorf("the output is:\n%s\nand %s:\n%s", r.last, args[0], b)
	}
	return nil
}
