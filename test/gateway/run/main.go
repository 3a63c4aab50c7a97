// Command run builds the Gateway API's conformance suite, starts a cluster of its own in a temporary directory, runs the suite
// against it, writes docs/results/gateway.md and removes the cluster. Needs root. From the folder above:
//
//	go run ./run -test HTTPRouteWeight
package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"sort"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	module   = "sigs.k8s.io/gateway-api"
	version  = "v1.6.3"
	profiles = "GATEWAY-HTTP,GATEWAY-GRPC,GATEWAY-TLS"
)

// images are the names under which the suite asks for its backends, by the programs that are in them.
var images = map[string][]string{
	"echo-basic": {"registry.k8s.io/gateway-api/echo-basic:v1.5.1", "registry.k8s.io/gateway-api/echo-basic:v1.6.0-dev.2", "registry.k8s.io/gateway-api/echo-basic:v1.6.0-dev.3"},
	"whoami":     {"registry.k8s.io/coredns/coredns:v1.12.2"},
}

type runner struct {
	ctx                             context.Context
	root, dir, data, config, report string
	coracle, test                   string
	usable                          string // an address that a gateway may ask for
	keep                            bool
}

func main() {
	r := runner{}
	flag.StringVar(&r.root, "root", "../..", "directory of the product's tree")
	flag.StringVar(&r.coracle, "coracle", "", "program to test (default bin/coracle in the tree)")
	flag.StringVar(&r.test, "test", "", "run this one test, by its short name, and write no page")
	flag.BoolVar(&r.keep, "keep", false, "leave the cluster running")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	r.ctx = ctx
	if err := r.run(); err != nil {
		fmt.Fprintln(os.Stderr, "gateway conformance:", err)
		os.Exit(1)
	}
}

func (r *runner) run() (err error) {
	if r.root, err = filepath.Abs(r.root); err != nil {
		return err
	}
	if r.coracle == "" {
		r.coracle = filepath.Join(r.root, "bin/coracle")
	}
	if r.dir, err = os.MkdirTemp("", "coracle-gateway-"); err != nil {
		return err
	}
	r.data, r.config, r.report = filepath.Join(r.dir, "data"), filepath.Join(r.dir, "kubeconfig"), filepath.Join(r.dir, "report.yaml")
	if err := r.build(); err != nil {
		return err
	}
	port, err := freePort()
	if err != nil {
		return err
	}
	if err := r.command(r.coracle, "up", "--detach", "--data-dir", r.data, "--port", strconv.Itoa(port), "--kubeconfig", r.config).Run(); err != nil {
		return fmt.Errorf("start a cluster: %w", err)
	}
	if !r.keep {
		defer func() {
			end := exec.Command(r.coracle, "reset", "--data-dir", r.data, "--yes") // also when ctx has ended
			err = errors.Join(err, end.Run(), os.RemoveAll(r.dir))
		}()
	}
	for program, names := range images {
		for _, n := range names {
			if err := r.command(r.coracle, "image", "build", "--data-dir", r.data, "--name", n, "--entrypoint", "/"+program, filepath.Join(r.dir, program)).Run(); err != nil {
				return fmt.Errorf("image %s: %w", n, err)
			}
		}
	}
	definitions, err := exec.CommandContext(r.ctx, "go", "list", "-m", "-f", "{{.Dir}}/config/crd/standard", module).Output()
	if err != nil {
		return err
	}
	if err := r.command(r.coracle, "kubectl", "apply", "-f", strings.TrimSpace(string(definitions))).Run(); err != nil {
		return fmt.Errorf("the definitions that everybody installs: %w", err)
	}
	node := r.command(r.coracle, "kubectl", "get", "nodes", "-o", `jsonpath={.items[0].status.addresses[?(@.type=="InternalIP")].address}`)
	node.Stdout = nil
	address, err := node.Output()
	if err != nil {
		return fmt.Errorf("address of the node: %w", err)
	}
	r.usable, _, _ = strings.Cut(string(address), " ")
	return r.suite()
}

// build makes the suite and its backends.
func (r *runner) build() error {
	test := r.command("go", "test", "-c", "-o", filepath.Join(r.dir, "suite"), ".")
	if err := test.Run(); err != nil {
		return err
	}
	for program, pkg := range map[string]string{"echo-basic": module + "/conformance/echo-basic", "whoami": "./whoami"} {
		c := r.command("go", "build", "-o", filepath.Join(r.dir, program), pkg)
		c.Env = append(c.Env, "CGO_ENABLED=0")
		if err := c.Run(); err != nil {
			return err
		}
	}
	return nil
}

func (r *runner) command(name string, args ...string) *exec.Cmd {
	c := exec.CommandContext(r.ctx, name, args...)
	c.Env = append(os.Environ(), "KUBECONFIG="+r.config)
	c.Stdout, c.Stderr = os.Stdout, os.Stderr
	return c
}

// suite runs it and writes the page.
func (r *runner) suite() error {
	args := []string{"-test.v", "-test.timeout=60m", "-test.run=TestConformance", "-gateway-class=coracle", "-conformance-profiles=" + profiles,
		"-organization=coracle", "-project=coracle", "-url=https://coracle.dev", "-version=v0.1.0", "-contact=none",
		"-usable-address=" + r.usable, "-unusable-address=192.0.2.1"}
	if r.test != "" {
		return r.command(filepath.Join(r.dir, "suite"), append(args, "-run-test="+r.test)...).Run()
	}
	c := r.command(filepath.Join(r.dir, "suite"), append(args, "-report-output="+r.report)...)
	var log bytes.Buffer
	c.Stdout = &log
	began := time.Now()
	failed := c.Run()
	if err := os.WriteFile(filepath.Join(os.TempDir(), "coracle-gateway.log"), log.Bytes(), 0o644); err != nil {
		return err
	}
	page, err := write(&log, r.report, time.Since(began))
	if err != nil {
		return errors.Join(failed, err)
	}
	fmt.Print(page)
	return errors.Join(failed, os.WriteFile(filepath.Join(r.root, "docs/results/gateway.md"), []byte(page), 0o644))
}

// outcome is a line of the suite's log about one test.
var outcome = regexp.MustCompile(`^\s{4}--- (PASS|FAIL|SKIP): TestConformance/([A-Za-z0-9]+) \(`)

// write makes the page out of what the suite said.
func write(log *bytes.Buffer, report string, took time.Duration) (string, error) {
	all := map[string][]string{}
	lines := bufio.NewScanner(log)
	lines.Buffer(nil, 1<<24)
	for lines.Scan() {
		if m := outcome.FindStringSubmatch(lines.Text()); m != nil {
			all[m[1]] = append(all[m[1]], m[2])
		}
	}
	if err := lines.Err(); err != nil {
		return "", err
	}
	said, err := os.ReadFile(report)
	if err != nil {
		return "", err
	}
	var b strings.Builder
	fmt.Fprintf(&b, "# Gateway API conformance\n\nThe published suite (%s/conformance %s, unchanged, `make gateway-conformance`) against a fresh cluster, with the definitions of the\n"+
		"standard channel installed beside the built-in kinds, and every extended feature that the class `coracle` claims.\nProfiles %s; %s.\n\n",
		module, version, profiles, took.Round(time.Second))
	fmt.Fprintf(&b, "| passed | failed | left out |\n|---|---|---|\n| %d | %d | %d |\n", len(all["PASS"]), len(all["FAIL"]), len(all["SKIP"]))
	for _, k := range []string{"FAIL", "SKIP"} {
		if sort.Strings(all[k]); len(all[k]) > 0 {
			fmt.Fprintf(&b, "\n%s: %s\n", map[string]string{"FAIL": "Failed", "SKIP": "Left out"}[k], strings.Join(all[k], ", "))
		}
	}
	fmt.Fprintf(&b, "\nThe suite's own report:\n\n```yaml\n%s```\n", said)
	return b.String(), nil
}

func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}
