package apiserver

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// kubectl runs the machine's kubectl against the server.
func (e *env) kubectl(stdin string, args ...string) (string, error) {
	e.t.Helper()
	path, err := exec.LookPath("kubectl")
	if err != nil {
		e.t.Skip("no kubectl on this machine")
	}
	home := e.t.TempDir()
	cfg := clientcmdapi.NewConfig()
	cfg.Clusters["c"] = &clientcmdapi.Cluster{Server: e.http.URL, CertificateAuthorityData: e.config.CAData}
	cfg.AuthInfos["u"] = &clientcmdapi.AuthInfo{ClientCertificateData: e.config.CertData, ClientKeyData: e.config.KeyData}
	cfg.Contexts["x"] = &clientcmdapi.Context{Cluster: "c", AuthInfo: "u"}
	cfg.CurrentContext = "x"
	file := filepath.Join(home, "config")
	if err := clientcmd.WriteToFile(*cfg, file); err != nil {
		e.t.Fatal(err)
	}
	cmd := exec.CommandContext(ctx(e.t), path, args...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+file, "HOME="+home)
	cmd.Stdin = strings.NewReader(stdin)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err = cmd.Run()
	return out.String(), err
}

func TestKubectl(t *testing.T) {
	e := start(t, smallKinds())
	run := func(want, stdin string, args ...string) {
		t.Helper()
		out, err := e.kubectl(stdin, args...)
		if err != nil || !strings.Contains(out, want) {
			t.Fatalf("kubectl %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
	manifest := "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: web\ndata:\n  color: red\n"
	run("configmap/web created", manifest, "apply", "--validate=false", "-f", "-")
	run("configmap/web unchanged", manifest, "apply", "--validate=false", "-f", "-")
	run("configmap/web configured", strings.Replace(manifest, "red", "blue", 1), "apply", "--validate=false", "-f", "-")
	run("web    1", "", "get", "cm")
	run("color: blue", "", "get", "cm", "web", "-o", "yaml")
	run("configmap/web patched", "", "patch", "cm", "web", "-p", `{"data":{"a":"b"}}`)
	run("configmap/web labeled", "", "label", "cm", "web", "x=y")
	run("v1.37.2", "", "version")
	run("configmaps", "", "api-resources")
	run(`configmap "web" deleted`, "", "delete", "cm", "web")
	if out, err := e.kubectl("", "get", "cm", "web"); err == nil || !strings.Contains(out, `configmaps "web" not found`) {
		t.Fatalf("%v %s", err, out)
	}
}
