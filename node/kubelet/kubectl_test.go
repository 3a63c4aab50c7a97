package kubelet

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// kubectl is the machine's own, or the one that KUBECTL names, so that any version can be held against the
// handler.
func kubectl(t *testing.T) string {
	name := os.Getenv("KUBECTL")
	if name == "" {
		name = "kubectl"
	}
	path, err := exec.LookPath(name)
	if err != nil {
		t.Skip("there is no kubectl")
	}
	return path
}

// frontDoor is as much of an API server as kubectl needs to reach the node.
func frontDoor(t *testing.T, node http.Handler) *httptest.Server {
	mux := http.NewServeMux()
	answer := func(pattern string, v any) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			json.NewEncoder(w).Encode(v)
		})
	}
	answer("GET /api", metav1.APIVersions{TypeMeta: metav1.TypeMeta{Kind: "APIVersions"}, Versions: []string{"v1"}})
	answer("GET /apis", metav1.APIGroupList{TypeMeta: metav1.TypeMeta{Kind: "APIGroupList", APIVersion: "v1"}, Groups: []metav1.APIGroup{}})
	answer("GET /api/v1", metav1.APIResourceList{TypeMeta: metav1.TypeMeta{Kind: "APIResourceList"}, GroupVersion: "v1", APIResources: []metav1.APIResource{
		{Name: "pods", SingularName: "pod", Kind: "Pod", Namespaced: true, Verbs: metav1.Verbs{"get", "list"}},
	}})
	pod := testPod.DeepCopy()
	pod.APIVersion, pod.Kind = "v1", "Pod"
	pod.Status.Phase = corev1.PodRunning
	pod.Status.ContainerStatuses = append(pod.Status.ContainerStatuses, corev1.ContainerStatus{Name: "app", Ready: true})
	pod.Spec.Containers[0].Stdin = true
	answer("GET /api/v1/namespaces/default/pods/web", pod)
	mux.HandleFunc("/api/v1/namespaces/default/pods/web/{sub}", func(w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		paths := map[string]string{"exec": "/exec/default/web/app", "attach": "/attach/default/web/app", "log": "/containerLogs/default/web/app", "portforward": "/portForward/default/web"}
		r = r.Clone(r.Context())
		r.URL = &url.URL{Path: paths[r.PathValue("sub")], RawQuery: q.Encode()}
		node.ServeHTTP(w, r)
	})
	srv := httptest.NewServer(mux)
	t.Cleanup(srv.Close)
	return srv
}

var earlyFrame = regexp.MustCompile(`(?m)^E\d{4} .*\] Unknown stream id \d, discarding message\n`)

func TestKubectl(t *testing.T) {
	bin := kubectl(t)
	home := t.TempDir()
	log := filepath.Join(home, "0.log")
	if err := os.WriteFile(log, []byte(line(0, "stdout", "F", "logged")), 0o600); err != nil {
		t.Fatal(err)
	}
	rt := newFake()
	rt.ports[80] = listen(t, func(c net.Conn) {
		defer c.Close()
		l, _ := bufio.NewReader(c).ReadString('\n')
		fmt.Fprintf(c, "you said %s", l)
	})
	_, s := serve(t, rt, log)
	srv := frontDoor(t, s)
	command := func(ctx context.Context, args ...string) *exec.Cmd {
		cmd := exec.CommandContext(ctx, bin, append([]string{"--server", srv.URL}, args...)...)
		cmd.Env = append(os.Environ(), "HOME="+home, "KUBECONFIG="+home+"/none", "NO_PROXY=127.0.0.1")
		return cmd
	}
	run := func(stdin string, args ...string) (string, int) {
		t.Helper()
		cmd := command(testContext(t), args...)
		if stdin != "" {
			cmd.Stdin = strings.NewReader(stdin)
		}
		out, err := cmd.CombinedOutput()
		if err != nil && cmd.ProcessState == nil {
			t.Fatal(err)
		}
		// The client says this of the frame that opens a stream, when it reads that before it has made the stream itself.
		text := earlyFrame.ReplaceAllString(strings.ReplaceAll(string(out), "\r", ""), "")
		return text, cmd.ProcessState.ExitCode()
	}
	for _, websockets := range []string{"true", "false"} {
		t.Setenv("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", websockets)
		t.Setenv("KUBECTL_PORT_FORWARD_WEBSOCKETS", websockets)
		t.Run("websockets="+websockets, func(t *testing.T) {
			for _, c := range []struct {
				stdin string
				args  []string
				want  string
				code  int
			}{
				{"", []string{"exec", "web", "-c", "app", "--", "echo", "a b"}, "a b\n", 0},
				{"", []string{"exec", "web", "-c", "app", "--", "sh", "-c", "exit 3"}, "command terminated with exit code 3\n", 3},
				{"typed", []string{"exec", "-i", "web", "-c", "app", "--", "sh", "-c", "cat; echo .; exit 5"}, "typed.\ncommand terminated with exit code 5\n", 5},
				{"", []string{"exec", "web", "-c", "app", "--", "missing"}, "error: Internal error occurred: error executing command in container: failed to exec in container: " +
					"OCI runtime exec failed: exec failed: unable to start container process: exec: \"missing\": executable file not found in $PATH\n", 1},
				{"echoed", []string{"attach", "-i", "web", "-c", "app", "-q"}, "echoed", 0},
				{"", []string{"logs", "web", "-c", "app"}, "logged\n", 0},
			} {
				if got, code := run(c.stdin, c.args...); got != c.want || code != c.code {
					t.Errorf("%v: %d %q", c.args, code, got)
				}
			}
			src, dst := filepath.Join(home, "src"+websockets), filepath.Join(home, "dst"+websockets)
			data := bytes.Repeat([]byte("0123456789"), 300_000)
			if err := os.WriteFile(src, data, 0o600); err != nil {
				t.Fatal(err)
			}
			if out, code := run("", "cp", src, "web:"+dst, "-c", "app"); code != 0 {
				t.Fatalf("cp: %s", out)
			}
			if got, err := os.ReadFile(dst); err != nil || !bytes.Equal(got, data) {
				t.Errorf("cp brought %d bytes, %v", len(got), err)
			}
			if out, code := run("", "cp", "web:"+dst, src+".back", "-c", "app"); code != 0 {
				t.Fatalf("cp: %s", out)
			}
			if got, err := os.ReadFile(src + ".back"); err != nil || !bytes.Equal(got, data) {
				t.Errorf("cp back brought %d bytes, %v", len(got), err)
			}
			t.Run("terminal", func(t *testing.T) { kubectlTerminal(t, command) })
			t.Run("port-forward", func(t *testing.T) { kubectlForward(t, command) })
		})
	}
}

// kubectlTerminal runs exec -it on a terminal that script makes; its first size reaches the command.
func kubectlTerminal(t *testing.T, command func(context.Context, ...string) *exec.Cmd) {
	script, err := exec.LookPath("script")
	if err != nil {
		t.Skip("there is no script")
	}
	inner := command(testContext(t), "exec", "-it", "web", "-c", "app", "--", "sizes", "1")
	cmd := exec.CommandContext(testContext(t), script, "-qec", "stty rows 33 cols 77; "+strings.Join(inner.Args, " "), "/dev/null")
	cmd.Env = inner.Env
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "77x33") {
		t.Errorf("%v %q", err, out)
	}
}

var forwarding = regexp.MustCompile(`Forwarding from (127\.0\.0\.1:\d+) -> 80`)

func kubectlForward(t *testing.T, command func(context.Context, ...string) *exec.Cmd) {
	ctx, cancel := context.WithCancel(testContext(t))
	defer cancel()
	cmd := command(ctx, "port-forward", "web", ":80")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var errs bytes.Buffer
	cmd.Stderr = &errs
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer cancel()
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		m := forwarding.FindStringSubmatch(lines.Text())
		if m == nil {
			continue
		}
		go io.Copy(io.Discard, out)
		for range 3 {
			c, err := net.Dial("tcp", m[1])
			if err != nil {
				t.Fatal(err)
			}
			fmt.Fprintln(c, "hello")
			got, err := io.ReadAll(c)
			c.Close()
			if err != nil || string(got) != "you said hello\n" {
				t.Fatalf("%q %v", got, err)
			}
		}
		return
	}
	cancel()
	cmd.Wait()
	t.Fatalf("port-forward ended: %s", errs.String())
}
