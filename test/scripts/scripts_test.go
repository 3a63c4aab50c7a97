package scripts

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/rogpeppe/go-internal/testscript"
)

var update = flag.Bool("update", false, "rewrite the files that cmp compares with")

// TestScripts runs every script, several at once where the machine has the cores.
func TestScripts(t *testing.T) {
	if os.Getuid() != 0 {
		t.Fatal("these scenarios run real containers: run them as root")
	}
	bin, err := filepath.Abs(cmp.Or(os.Getenv("CORACLE_BIN"), "../../bin"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(bin, "coracle")); err != nil {
		t.Fatalf("%v: run `make build` first", err)
	}
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata",
		UpdateScripts:       *update,
		RequireExplicitExec: true,
		Setup:               func(env *testscript.Env) error { return setup(env, bin) },
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"coracle": func(ts *testscript.TestScript, neg bool, args []string) { run(ts, neg, "coracle", args...) },
			"kubectl": func(ts *testscript.TestScript, neg bool, args []string) {
				run(ts, neg, "coracle", append([]string{"kubectl"}, args...)...)
			},
			"eventually":   eventually,
			"image":        image,
			"left":         left,
			"traces":       traces,
			"settles":      settles,
			"kill9":        kill9,
			"listen":       listen,
			"loaded":       loaded,
			"freeport":     freeport,
			"registry":     serveRegistry,
			"webhooks":     serveWebhooks,
			"extension":    serveExtension,
			"dradriver":    serveDriver,
			"deviceplugin": servePlugin,
			"podresources": podResources,
			"instance":     oneMore,
			"expand":       expand,
			"program":      program,
			"request":      request,
			"issued":       issued,
			"signer":       signer,
			"bundle":       bundleNames,
			"machine":      machine,
			"on":           on,
			"join":         joinMachine,
			"kill9on":      kill9On,
		},
	})
}

func setup(env *testscript.Env, bin string) error {
	port, err := freePort()
	if err != nil {
		return err
	}
	data, err := os.MkdirTemp("", "coracle-script-")
	if err != nil {
		return err
	}
	env.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	root, err := filepath.Abs("../..")
	if err != nil {
		return err
	}
	env.Setenv("ROOT", root)
	env.Setenv("BIN", bin)
	env.Setenv("HOME", env.WorkDir)
	env.Setenv("CORACLE_DATA_DIR", data)
	env.Setenv("CORACLE_PORT", strconv.Itoa(port))
	env.Setenv("CORACLE_KUBECONFIG", filepath.Join(env.WorkDir, "kubeconfig"))
	env.Setenv("CORACLE_LOG_LEVEL", "debug")
	env.Setenv("CORACLE_CHURN", cmp.Or(os.Getenv("CORACLE_CHURN"), "60"))
	vars := append([]string{}, env.Vars...)
	env.Defer(func() {
		c := exec.Command(filepath.Join(bin, "coracle"), "reset", "--yes", "--data-dir", data)
		c.Env = vars
		if out, err := c.CombinedOutput(); err != nil {
			env.T().Log("reset: ", err, string(out))
			env.T().FailNow()
		}
		os.RemoveAll(data)
	})
	return nil
}

// run runs a program to its end and keeps its output for stdout and stderr.
func run(ts *testscript.TestScript, neg bool, name string, args ...string) {
	err := ts.Exec(name, args...)
	if err != nil && !neg {
		explain(ts)
		ts.Fatalf("%s %s: %v", name, strings.Join(args, " "), err)
	}
	if err == nil && neg {
		ts.Fatalf("%s %s succeeded", name, strings.Join(args, " "))
	}
}

// program FOLDER FILE [PACKAGE] builds a static program from a folder of this tree, which may be a module of its own, or from a
// package that this module names.
func program(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 || len(args) > 3 {
		ts.Fatalf("usage: program FOLDER FILE [PACKAGE]")
	}
	c := exec.Command("go", "build", "-o", ts.MkAbs(args[1]), cmp.Or(strings.Join(args[2:], ""), "."))
	c.Dir = filepath.Join(ts.Getenv("ROOT"), args[0])
	c.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := c.CombinedOutput(); err != nil {
		ts.Fatalf("building %s: %v\n%s", args[0], err, out)
	}
}

// eventually TIME PATTERN COMMAND... runs the command again until it succeeds and its
// standard output matches; with "!" until it does not match or fails.
func eventually(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) < 3 {
		ts.Fatalf("usage: [!] eventually TIME PATTERN COMMAND...")
	}
	limit, err := time.ParseDuration(args[0])
	ts.Check(err)
	pattern, err := regexp.Compile("(?m)" + args[1])
	ts.Check(err)
	command := args[2:]
	if command[0] == "kubectl" {
		command = append([]string{"coracle"}, command...)
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	var last string
	for {
		var out, errs bytes.Buffer
		c := exec.CommandContext(ctx, lookPath(ts, command[0]), command[1:]...)
		c.Dir, c.Stdout, c.Stderr = ts.MkAbs("."), &out, &errs
		c.Env = environment(ts)
		err := c.Run()
		if ok := err == nil && pattern.Match(out.Bytes()); ok != neg {
			return
		}
		if ctx.Err() == nil || last == "" {
			last = fmt.Sprintf("(%v)\n%s%s", err, out.String(), errs.String())
		}
		select {
		case <-ctx.Done():
			explain(ts)
			ts.Fatalf("after %s %q still gives %s", limit, strings.Join(command, " "), last)
		case <-time.After(50 * time.Millisecond): // between two looks at the condition
		}
	}
}

func lookPath(ts *testscript.TestScript, name string) string {
	for _, dir := range filepath.SplitList(ts.Getenv("PATH")) {
		if path := filepath.Join(dir, name); isExecutable(path) {
			return path
		}
	}
	ts.Fatalf("%s is not on the PATH", name)
	return ""
}

func isExecutable(path string) bool {
	info, err := os.Stat(path)
	return err == nil && !info.IsDir() && info.Mode()&0o111 != 0
}

func environment(ts *testscript.TestScript) []string {
	var env []string // nothing of the developer's own
	for _, name := range []string{"PATH", "HOME", "WORK", "TMPDIR", "CORACLE_DATA_DIR", "CORACLE_PORT", "CORACLE_KUBECONFIG", "KUBECONFIG"} {
		if v := ts.Getenv(name); v != "" {
			env = append(env, name+"="+v)
		}
	}
	return env
}

// image NAME makes the busybox test image and imports it under that name.
func image(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: image NAME")
	}
	file := filepath.Join(ts.Getenv("WORK"), "image.tar")
	out, err := os.Create(file)
	ts.Check(err)
	defer out.Close()
	c := exec.Command(lookPath(ts, "busybox-image"))
	c.Stdout = out
	ts.Check(c.Run())
	run(ts, false, "coracle", "image", "import", "--name", args[0], file)
}

// kill9 ends the running coracle the hard way.
func kill9(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 0 {
		ts.Fatalf("usage: kill9")
	}
	ts.Check(ts.Exec("coracle", "status", "-o", "json"))
	var status struct{ PID int }
	ts.Check(json.Unmarshal([]byte(ts.ReadFile("stdout")), &status))
	killProcess(ts, status.PID)
}

// killProcess ends a process and waits until it is gone.
func killProcess(ts *testscript.TestScript, pid int) {
	p, err := os.FindProcess(pid)
	ts.Check(err)
	ts.Check(p.Kill())
	for range 200 { // the kernel takes a moment
		if _, err := os.Stat(fmt.Sprintf("/proc/%d", pid)); err != nil {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	ts.Fatalf("process %d is still there", pid)
}

// oneMore is the command instance VARIABLE: it makes the data directory of a further cluster, which is removed at the end of the script as the
// script's own is, and sets the variable to it.
func oneMore(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: instance VARIABLE")
	}
	dir, err := os.MkdirTemp("", "coracle-script-")
	ts.Check(err)
	ts.Setenv(args[0], dir)
	ts.Defer(func() {
		c := exec.Command(lookPath(ts, "coracle"), "reset", "--yes", "--data-dir", dir)
		c.Env = environment(ts)
		if out, err := c.CombinedOutput(); err != nil {
			ts.Fatalf("reset: %v: %s", err, out)
		}
		os.RemoveAll(dir)
	})
}

// listen PORTVAR occupies a free port until the script ends and sets the variable to it.
func listen(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: listen VARIABLE")
	}
	l, err := net.Listen("tcp", ":0")
	ts.Check(err)
	ts.Defer(func() { l.Close() })
	ts.Setenv(args[0], strconv.Itoa(l.Addr().(*net.TCPAddr).Port))
}

// freeport VARIABLE sets the variable to a port that nobody listens on.
func freeport(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: freeport VARIABLE")
	}
	port, err := freePort()
	ts.Check(err)
	ts.Setenv(args[0], strconv.Itoa(port))
}

// serveRegistry is the command registry VARIABLE NAME...: it serves an image registry until the script
// ends, sets the variable to its host and port, and pushes the busybox test image under each name.
func serveRegistry(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 1 {
		ts.Fatalf("usage: registry VARIABLE NAME...")
	}
	server := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	ts.Defer(server.Close)
	host := strings.TrimPrefix(server.URL, "http://")
	ts.Setenv(args[0], host)
	file := filepath.Join(ts.Getenv("WORK"), "pushed.tar")
	archive, err := exec.Command(lookPath(ts, "busybox-image"), "busybox:pushed").Output()
	ts.Check(err)
	ts.Check(os.WriteFile(file, archive, 0o644))
	img, err := tarball.ImageFromPath(file, nil)
	ts.Check(err)
	for _, n := range args[1:] {
		ref, err := name.ParseReference(host+"/"+n, name.Insecure)
		ts.Check(err)
		ts.Check(remote.Write(ref, img))
	}
}

// expand FILE... replaces ${NAME} in the files by the environment's values.
func expand(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) == 0 {
		ts.Fatalf("usage: expand FILE...")
	}
	for _, name := range args {
		text := regexp.MustCompile(`\$\{[A-Z_]+\}`).ReplaceAllStringFunc(ts.ReadFile(name), func(v string) string {
			return ts.Getenv(v[2 : len(v)-1])
		})
		ts.Check(os.WriteFile(ts.MkAbs(name), []byte(text), 0o644))
	}
}
