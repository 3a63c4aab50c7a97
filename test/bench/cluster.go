package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// instance is a running cluster of the bench's own.
type instance struct {
	b    *bench
	dir  string
	port int
	args []string
}

// status is the part of `coracle status -o json` that is used here.
type status struct {
	PID        int           `json:"pid"`
	ReadyAfter time.Duration `json:"readyAfter"`
	Resident   int64         `json:"residentBytes"`
	Shim       int64         `json:"shimResidentBytes"`
	CPU        time.Duration `json:"cpu"`
	Pods       int           `json:"pods"`
	Running    int           `json:"podsRunning"`
}

// start makes a cluster in a new directory.
func (b *bench) start(args ...string) (*instance, time.Duration, error) {
	dir, err := os.MkdirTemp("", "coracle-bench-")
	if err != nil {
		return nil, 0, err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, 0, err
	}
	port := l.Addr().(*net.TCPAddr).Port
	l.Close()
	i := &instance{b: b, dir: dir, port: port, args: args}
	took, err := i.up()
	if err != nil {
		i.remove()
		return nil, 0, err
	}
	return i, took, nil
}

// up starts the cluster and returns how long the command took.
func (i *instance) up() (time.Duration, error) {
	began := time.Now()
	_, err := i.run(append([]string{"up", "-d", "--port", strconv.Itoa(i.port), "--kubeconfig", "none"}, i.args...)...)
	return time.Since(began), err
}

func (i *instance) run(args ...string) (string, error) {
	c := exec.CommandContext(i.b.ctx, filepath.Join(i.b.bin, "coracle"), append(args, "--data-dir", i.dir)...)
	out, err := c.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("coracle %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return string(out), nil
}

func (i *instance) remove() {
	if _, err := i.run("reset", "--yes"); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
	}
}

func (i *instance) status() (status, error) {
	var s status
	out, err := i.run("status", "-o", "json")
	if err != nil {
		return s, err
	}
	return s, json.Unmarshal([]byte(out), &s)
}

// cpu is what the server has used so far, to the kernel's accounting unit of 10 ms.
func (i *instance) cpu() (time.Duration, error) {
	s, err := i.status()
	return s.CPU, err
}

// config is a client configuration without limits of its own.
func (i *instance) config(protobuf bool) (*rest.Config, error) {
	c, err := clientcmd.BuildConfigFromFlags("", filepath.Join(i.dir, "admin.kubeconfig"))
	if err != nil {
		return nil, err
	}
	c.QPS = -1
	if protobuf {
		c.ContentType = "application/vnd.kubernetes.protobuf"
	} else {
		c.ContentType = "application/json"
	}
	c.AcceptContentTypes = c.ContentType
	return c, nil
}

func (i *instance) client(protobuf bool) (*kubernetes.Clientset, error) {
	c, err := i.config(protobuf)
	if err != nil {
		return nil, err
	}
	return kubernetes.NewForConfig(c)
}

// importBusybox puts the test image on the real node.
func (i *instance) importBusybox(ctx context.Context) error {
	file := filepath.Join(i.dir, "busybox.tar")
	out, err := os.Create(file)
	if err != nil {
		return err
	}
	defer out.Close()
	c := exec.CommandContext(ctx, filepath.Join(i.b.bin, "busybox-image"), "busybox:bench")
	c.Stdout = out
	if err := c.Run(); err != nil {
		return fmt.Errorf("busybox-image: %w", err)
	}
	_, err = i.run("image", "import", file)
	return err
}
