// Command run builds what Kubernetes' conformance suite needs, starts a cluster of its own in a temporary directory, runs the
// suite against it, writes the results, and removes the cluster. Needs root (the cluster runs containers). From this folder:
//
//	go run ./run -focus 'sig-apps' -skip 'Serial' -parallel 2
//
// Programs and images are kept in -work between runs and built when they are missing; -rebuild builds them again.
package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// kubernetes is the release whose suite is run.
const kubernetes = "v1.37.2"

// packages of Debian whose programs go into the test images, with the libraries that a bare system lacks.
var packages = strings.Fields(`nginx bind9-dnsutils bind9-libs netcat-openbsd iperf socat curl libcurl4 libuv1 libnghttp2-14
	libmaxminddb0 libjson-c5 liblmdb0 libfstrm0 libprotobuf-c1 libxml2 libpcre2-8-0 libedit2 libbsd0 libwrap0 libicu72 libjemalloc2
	bash-static`)

type runner struct {
	root, work, coracle, focus, skip string
	parallel, nodes                  int
	limit                            time.Duration
	report                           string
	merge, rebuild, keep, collect    bool
	ctx                              context.Context
}

func main() {
	r := runner{}
	flag.StringVar(&r.root, "root", "../..", "directory of the product's tree")
	flag.StringVar(&r.work, "work", filepath.Join(os.TempDir(), "coracle-conformance"), "directory for programs, images and reports")
	flag.StringVar(&r.coracle, "coracle", "", "program to test (default bin/coracle in the tree)")
	flag.StringVar(&r.focus, "focus", "", "run the conformance tests whose name matches this regular expression")
	flag.StringVar(&r.skip, "skip", "", "leave out those that match this one")
	flag.IntVar(&r.parallel, "parallel", 1, "tests to run at a time; the serial ones run alone")
	flag.IntVar(&r.nodes, "nodes", 2, "nodes of the cluster, 1 or 2; the second is a network namespace of this machine")
	flag.DurationVar(&r.limit, "limit", 4*time.Hour, "end the run after this time")
	flag.StringVar(&r.report, "report", "", "file to write (default docs/results/conformance.md in the tree)")
	flag.BoolVar(&r.merge, "merge", false, "tests that this run leaves out keep the results of earlier runs in the working directory")
	flag.BoolVar(&r.rebuild, "rebuild", false, "build programs and images again")
	flag.BoolVar(&r.collect, "collect", false, "run nothing: write the page from all the reports in the working directory")
	flag.BoolVar(&r.keep, "keep", false, "leave the cluster running")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	r.ctx = ctx
	if err := r.run(); err != nil {
		fmt.Fprintln(os.Stderr, "conformance:", err)
		os.Exit(1)
	}
}

func (r *runner) run() (err error) {
	for _, p := range []*string{&r.root, &r.work} {
		if *p, err = filepath.Abs(*p); err != nil {
			return err
		}
	}
	if r.nodes != 1 && r.nodes != 2 {
		return fmt.Errorf("nodes: %d is neither 1 nor 2", r.nodes)
	}
	if r.coracle == "" {
		r.coracle = filepath.Join(r.root, "bin/coracle")
	}
	if r.report == "" {
		r.report = filepath.Join(r.root, "docs/results/conformance.md")
	}
	if r.collect {
		r.merge = true
		return r.write("", time.Now())
	}
	if err := r.prepare(); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "coracle-conformance-cluster-")
	if err != nil {
		return err
	}
	if !r.keep {
		defer r.remove(dir)
	}
	port, err := freePort()
	if err != nil {
		return err
	}
	var second *machine
	address := "127.0.0.1"
	if r.nodes == 2 {
		if second, err = r.addMachine(port); err != nil {
			return err
		}
		if !r.keep {
			defer r.removeMachine(second)
		}
		address = second.here // both reach it there
	}
	mirror, closeRegistry, err := r.registry(address)
	if err != nil {
		return err
	}
	defer closeRegistry()
	if err := r.start(dir, port, mirror, second); err != nil {
		return err
	}
	began := time.Now()
	reports := filepath.Join(r.work, "reports", began.UTC().Format("20060102-150405"))
	failed := r.suite(dir, reports)
	if err := r.write(reports, began); err != nil {
		return errors.Join(failed, err)
	}
	return failed
}

// prepare builds the programs and images that are missing.
func (r *runner) prepare() error {
	images := filepath.Join(r.work, "images")
	if err := os.MkdirAll(images, 0o755); err != nil {
		return err
	}
	ldflags := "-s -w -X k8s.io/component-base/version.gitVersion=" + kubernetes +
		" -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=37"
	here, module := filepath.Join(r.root, "test/conformance"), "k8s.io/kubernetes"
	steps := []struct {
		makes, dir string
		command    []string
	}{
		{"e2e.test", here, []string{"go", "test", "-c", "-trimpath", "-ldflags", ldflags, "-o", r.file("e2e.test"), module + "/test/e2e"}},
		{"ginkgo", here, []string{"go", "build", "-trimpath", "-o", r.file("ginkgo"), "github.com/onsi/ginkgo/v2/ginkgo"}},
		{"agnhost", here, []string{"go", "build", "-trimpath", "-ldflags", "-s -w", "-o", r.file("agnhost"), module + "/test/images/agnhost"}},
		{"nnp", here, []string{"go", "build", "-trimpath", "-ldflags", "-s -w", "-o", r.file("nnp"), module + "/test/images/nonewprivs"}},
		{"sample-apiserver", here, []string{"go", "build", "-trimpath", "-ldflags", "-s -w", "-o", r.file("sample-apiserver"), "k8s.io/sample-apiserver"}},
		{"etcd", here, []string{"go", "build", "-trimpath", "-ldflags", "-s -w", "-o", r.file("etcd"), "go.etcd.io/etcd/server/v3"}},
		{"pause", r.root, []string{"go", "build", "-trimpath", "-ldflags", "-s -w", "-o", r.file("pause"), "./tools/e2e-images/pause"}},
		{"sh", r.root, []string{"go", "build", "-trimpath", "-ldflags", "-s -w", "-o", r.file("sh"), "./tools/e2e-images/sh"}},
		{"registry", r.root, []string{"go", "build", "-trimpath", "-o", r.file("registry"), "./tools/registry"}},
		{"debian/bin/bash-static", r.work, []string{"sh", "-ec", "mkdir -p packages debian; cd packages; apt-get download " +
			strings.Join(packages, " ") + " >/dev/null; for p in *.deb; do dpkg-deb -x \"$p\" ../debian; done"}},
	}
	for _, s := range steps {
		if _, err := os.Stat(r.file(s.makes)); err == nil && !r.rebuild {
			continue
		}
		fmt.Println("making", s.makes)
		if err := r.command(s.dir, s.command...); err != nil {
			return err
		}
	}
	if _, err := os.Stat(filepath.Join(images, "sample.tar")); err == nil && !r.rebuild {
		return nil
	}
	source, err := r.output(here, "go", "list", "-m", "-f", "{{.Dir}}", module)
	if err != nil {
		return err
	}
	fmt.Println("making images")
	return r.command(r.root, "go", "run", "./tools/e2e-images", "-out", images, "-agnhost", r.file("agnhost"), "-pause", r.file("pause"), "-sh", r.file("sh"), "-nnp", r.file("nnp"),
		"-sample", r.file("sample-apiserver"), "-etcd", r.file("etcd"), "-kubernetes", strings.TrimSpace(source), "-debian", r.file("debian"))
}

// registry serves the images as the registry that they name, for the tests that pull them whatever is there. It gives the
// value of --registry-mirror and what ends it.
func (r *runner) registry(address string) (mirror string, stop func(), err error) {
	images, err := r.images()
	if err != nil {
		return "", nil, err
	}
	cmd := exec.Command(r.file("registry"), append([]string{"-listen", net.JoinHostPort(address, "0")}, images...)...)
	cmd.Stderr = os.Stderr
	hold, err := cmd.StdinPipe() // it ends with this program
	if err != nil {
		return "", nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return "", nil, err
	}
	if err := cmd.Start(); err != nil {
		return "", nil, err
	}
	stop = func() { hold.Close(); cmd.Wait() }
	url, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		stop()
		return "", nil, fmt.Errorf("registry: %w", err)
	}
	return "registry.k8s.io=" + strings.TrimSpace(url), stop, nil
}

// start brings up a cluster in dir, with the second node if there is one, and imports the images.
func (r *runner) start(dir string, port int, mirror string, second *machine) error {
	if err := r.command(dir, r.coracle, "up", "-d", "--data-dir", dir, "--port", strconv.Itoa(port), "--kubeconfig", "none",
		"--node-name", "first", "--registry-mirror", mirror); err != nil {
		return err
	}
	images, err := r.images()
	if err != nil {
		return err
	}
	if err := r.command(dir, append([]string{r.coracle, "image", "import", "--data-dir", dir}, images...)...); err != nil || second == nil {
		return err
	}
	return r.join(second, dir, mirror, images)
}

// cleaning is the context of what is removed. The run may have been ended by the user: what it made goes all the same.
func (r *runner) cleaning() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(r.ctx), time.Minute)
}

func (r *runner) remove(dir string) {
	ctx, cancel := r.cleaning()
	defer cancel()
	if out, err := exec.CommandContext(ctx, r.coracle, "reset", "--yes", "--data-dir", dir).CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "conformance: reset: %v: %s\n", err, out)
		return
	}
	os.RemoveAll(dir)
}

// suite runs the tests; those marked serial in a second round, one at a time, when the others run side by side.
func (r *runner) suite(dir, reports string) error {
	ctx, cancel := context.WithTimeout(r.ctx, r.limit)
	defer cancel()
	focus := `\[Conformance\]`
	if r.focus != "" {
		focus = `(` + r.focus + `).*\[Conformance\]|\[Conformance\].*(` + r.focus + `)`
	}
	if r.parallel <= 1 {
		return r.round(ctx, dir, filepath.Join(reports, "all"), 1, []string{"--focus", focus}, r.skip)
	}
	return errors.Join(
		r.round(ctx, dir, filepath.Join(reports, "parallel"), r.parallel, []string{"--focus", focus}, join(r.skip, `\[Serial\]`)),
		r.round(ctx, dir, filepath.Join(reports, "serial"), 1, []string{"--focus", focus, "--label-filter", "Serial"}, r.skip))
}

func join(a, b string) string {
	if a == "" {
		return b
	}
	return a + "|" + b
}

// round is one run of the test program.
func (r *runner) round(ctx context.Context, dir, reports string, parallel int, options []string, skip string) error {
	if err := os.MkdirAll(reports, 0o755); err != nil {
		return err
	}
	log, err := os.Create(filepath.Join(reports, "log"))
	if err != nil {
		return err
	}
	defer log.Close()
	if skip != "" {
		options = append(options, "--skip", skip)
	}
	args := append([]string{"run", "--no-color", "--timeout", r.limit.String(), "--procs", strconv.Itoa(parallel)}, options...)
	args = append(args, r.file("e2e.test"), "--", "--provider", "skeleton", "--kubeconfig", filepath.Join(dir, "admin.kubeconfig"),
		"--report-dir", reports, "--allowed-not-ready-nodes", "-1", "--minStartupPods", "0", "--disable-log-dump",
		"--kubectl-path", r.kubectl(dir))
	cmd := exec.CommandContext(ctx, r.file("ginkgo"), args...)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 2 * time.Minute
	cmd.Stdout, cmd.Stderr, cmd.Dir = io.MultiWriter(log, dots{os.Stdout}), log, reports
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("the suite: %w (%s)", err, log.Name())
	}
	return nil
}

// dots lets the lines through that name a test's end.
type dots struct{ to io.Writer }

func (d dots) Write(b []byte) (int, error) {
	for line := range strings.Lines(string(b)) {
		if strings.Contains(line, "[FAILED]") || strings.Contains(line, "[TIMEDOUT]") || strings.HasPrefix(line, "Ran ") {
			io.WriteString(d.to, line)
		}
	}
	return len(b), nil
}

// kubectl is a program that calls the kubectl within the product, as the suite expects one of its own.
func (r *runner) kubectl(dir string) string {
	path := filepath.Join(dir, "kubectl")
	script := "#!/bin/sh\nexec " + r.coracle + " kubectl \"$@\"\n"
	if err := os.WriteFile(path, []byte(script), 0o755); err != nil {
		fmt.Fprintln(os.Stderr, "conformance:", err)
	}
	return path
}

func (r *runner) file(name string) string { return filepath.Join(r.work, name) }

func (r *runner) command(dir string, args ...string) error {
	cmd := exec.CommandContext(r.ctx, args[0], args[1:]...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w", strings.Join(args, " "), err)
	}
	return nil
}

func (r *runner) output(dir string, args ...string) (string, error) {
	cmd := exec.CommandContext(r.ctx, args[0], args[1:]...)
	cmd.Dir, cmd.Stderr = dir, os.Stderr
	out, err := cmd.Output()
	return string(out), err
}
