package scripts

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/rogpeppe/go-internal/testscript"
)

// machine NAME makes a network namespace that stands for a second machine, linked with this one, and a data directory for the node in
// it. Both are gone at the end of the script. It sets NAME_DIR and NAME_IP.
func machine(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: machine NAME")
	}
	port, err := strconv.Atoi(ts.Getenv("CORACLE_PORT"))
	ts.Check(err)
	// The script's own port is nobody else's: what is made is named and numbered after it.
	number := port & 0x3fff
	here, there := fmt.Sprintf("10.253.%d.%d", number>>6, number&63*4+1), fmt.Sprintf("10.253.%d.%d", number>>6, number&63*4+2)
	ns, link := namespaceOf(ts, args[0]), fmt.Sprintf("cm%d", port)
	dir, err := os.MkdirTemp("", "coracle-script-")
	ts.Check(err)
	ip := func(args ...string) {
		if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
			ts.Fatalf("ip %s: %v: %s", strings.Join(args, " "), err, out)
		}
	}
	ip("netns", "add", ns)
	ts.Defer(func() {
		c := exec.Command("nsenter", "--net=/run/netns/"+ns, lookPath(ts, "coracle"), "reset", "--yes", "--data-dir", dir)
		c.Env = environment(ts)
		out, err := c.CombinedOutput()
		ip("netns", "del", ns)
		if err != nil {
			ts.Fatalf("reset: %v: %s", err, out)
		}
		os.RemoveAll(dir)
	})
	ip("link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", ns)
	ip("addr", "add", here+"/30", "dev", link)
	ip("link", "set", link, "up")
	for _, command := range []string{"addr add " + there + "/30 dev eth0", "link set eth0 up", "link set lo up", "route add default via " + here} {
		ip(append([]string{"-n", ns}, strings.Fields(command)...)...)
	}
	ts.Setenv(strings.ToUpper(args[0])+"_DIR", dir)
	ts.Setenv(strings.ToUpper(args[0])+"_IP", there)
}

func namespaceOf(ts *testscript.TestScript, name string) string {
	return "coracle-script-" + ts.Getenv("CORACLE_PORT") + "-" + name
}

// on NAME coracle ARGUMENT... runs coracle on a machine, on the data directory that it has there.
func on(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) < 3 || args[1] != "coracle" {
		ts.Fatalf("usage: on NAME coracle ARGUMENT...")
	}
	command := append([]string{"--net=/run/netns/" + namespaceOf(ts, args[0]), lookPath(ts, "coracle")}, args[2:]...)
	dir := ts.Getenv(strings.ToUpper(args[0]) + "_DIR")
	err := ts.Exec("nsenter", append(command, "--data-dir", dir)...)
	if (err == nil) != neg {
		return
	}
	for _, name := range []string{"coracle.log", "coracle.err"} {
		data, _ := os.ReadFile(filepath.Join(dir, name))
		ts.Logf("%s of %s ends:\n%s", name, args[0], data[max(0, len(data)-4000):])
	}
	ts.Fatalf("%s: %v", strings.Join(args, " "), err)
}

// join NAME [FLAG...] makes a token and joins a machine with it under its name.
func joinMachine(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) < 1 {
		ts.Fatalf("usage: [!] join NAME [FLAG...]")
	}
	ts.Check(ts.Exec("coracle", "token", "create", "--print-join-command"))
	words := strings.Fields(ts.ReadFile("stdout"))
	if len(words) != 8 || words[0] != "coracle" || words[1] != "agent" {
		ts.Fatalf("the join command is %q", words)
	}
	on(ts, neg, append(append([]string{args[0], "coracle", "agent", "-d", "--node-name", args[0]}, words[2:]...), args[1:]...))
}

// kill9On NAME ends the coracle of a machine the hard way.
func kill9On(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: kill9on NAME")
	}
	on(ts, false, []string{args[0], "coracle", "status", "-o", "json"})
	var status struct{ PID int }
	ts.Check(json.Unmarshal([]byte(ts.ReadFile("stdout")), &status))
	killProcess(ts, status.PID)
}
