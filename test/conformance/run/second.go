package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
)

// machine is a network namespace that stands for a second machine, linked with this one.
type machine struct {
	name, dir   string
	here, there string // addresses at both ends of the link
}

// addMachine makes one. What is made is named and numbered after the number, which nobody else has: the port of the cluster.
func (r *runner) addMachine(number int) (m *machine, err error) {
	if m, err = machineOf(number); err != nil {
		return nil, err
	}
	link := fmt.Sprintf("cf%d", number)
	defer func() {
		if err != nil {
			r.removeMachine(m)
		}
	}()
	steps := []string{
		"netns add " + m.name,
		"link add " + link + " type veth peer name eth0 netns " + m.name,
		"addr add " + m.here + "/30 dev " + link,
		"link set " + link + " up",
		"-n " + m.name + " addr add " + m.there + "/30 dev eth0",
		"-n " + m.name + " link set eth0 up",
		"-n " + m.name + " link set lo up",
		"-n " + m.name + " route add default via " + m.here,
	}
	for _, s := range steps {
		if err := r.command("", append([]string{"ip"}, strings.Fields(s)...)...); err != nil {
			return m, err
		}
	}
	return m, nil
}

// machineOf chooses names and addresses, and a directory.
func machineOf(number int) (*machine, error) {
	dir, err := os.MkdirTemp("", "coracle-conformance-second-")
	if err != nil {
		return nil, err
	}
	low := number & 0x3fff
	address := func(host int) string { return fmt.Sprintf("10.252.%d.%d", low>>6, low&63*4+host) }
	return &machine{name: "coracle-conformance-" + strconv.Itoa(number), dir: dir, here: address(1), there: address(2)}, nil
}

// inside is a command as it is run on the machine.
func (m *machine) inside(args ...string) []string {
	return append([]string{"nsenter", "--net=/run/netns/" + m.name}, args...)
}

// join makes the machine a node of the cluster in dir and gives it the images.
func (r *runner) join(m *machine, dir, mirror string, images []string) error {
	out, err := r.output(dir, r.coracle, "token", "create", "--print-join-command", "--data-dir", dir)
	if err != nil {
		return err
	}
	words := strings.Fields(out)
	if len(words) < 3 || words[1] != "agent" {
		return fmt.Errorf("the join command is %q", out)
	}
	flags := append(words[2:], "-d", "--node-name", "second", "--data-dir", m.dir, "--registry-mirror", mirror)
	if err := r.command("/", m.inside(append([]string{r.coracle, "agent"}, flags...)...)...); err != nil {
		return err
	}
	return r.command("/", m.inside(append([]string{r.coracle, "image", "import", "--data-dir", m.dir}, images...)...)...)
}

// removeMachine ends what runs on the machine and takes it away. What the run made goes also when the user ended it.
func (r *runner) removeMachine(m *machine) {
	ctx, cancel := r.cleaning()
	defer cancel()
	reset := m.inside(r.coracle, "reset", "--yes", "--data-dir", m.dir)
	out, err := exec.CommandContext(ctx, reset[0], reset[1:]...).CombinedOutput()
	if err != nil {
		fmt.Fprintf(os.Stderr, "conformance: reset of the second node: %v: %s\n", err, out)
	}
	deleted := exec.CommandContext(ctx, "ip", "netns", "del", m.name).Run() // the link goes with it
	if err := errors.Join(err, deleted); err == nil {
		os.RemoveAll(m.dir)
	}
}

// freePort is a port that nobody listens on.
func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	return l.Addr().(*net.TCPAddr).Port, l.Close()
}

// images are the files with the images.
func (r *runner) images() ([]string, error) {
	return filepath.Glob(filepath.Join(r.work, "images", "*.tar"))
}
