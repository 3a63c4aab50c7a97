package simulated

import (
	"context"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"

	"coracle.dev/coracle/client"
	"coracle.dev/coracle/reconcile/reconciletest"
)

// ask sends one request to the kubelet API of a node of an agent beside c, which does nothing else.
func ask(c *reconciletest.Cluster, method, path string) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	New(Config{Client: c, Count: 3}).Handler("simulated-0").ServeHTTP(w, httptest.NewRequestWithContext(context.Background(), method, path, nil))
	return w
}

func TestLogs(t *testing.T) {
	staged(t, `
pods:
- {name: end, from: Ready, after: 1m, do: exit, code: 2, reason: Boom, select: {names: [short]}}
- {name: pull, from: Pending, do: wait, reason: ErrImagePull, select: {names: [nopull]}}
`, func(t *testing.T, c *reconciletest.Cluster) {
		said := pod("said", "simulated-0")
		said.Annotations = map[string]string{Logs: "one\ntwo\nthree", Logs + ".b": "other"}
		said.Spec.Containers = append(said.Spec.Containers, corev1.Container{Name: "b", Image: "img"})
		create(t, c, said)
		short := pod("short", "simulated-0")
		short.Spec.RestartPolicy = corev1.RestartPolicyNever
		create(t, c, short)
		create(t, c, pod("nopull", "simulated-0"))
		create(t, c, pod("elsewhere", "simulated-1"))
		synctest.Wait()
		stamp := time.Now().UTC().Format(time.RFC3339)
		for _, q := range []struct {
			path string
			code int
			want string
		}{
			{"/containerLogs/default/said/a", 200, "one\ntwo\nthree\n"},
			{"/containerLogs/default/said/b", 200, "other\n"},
			{"/containerLogs/default/said/a?tailLines=1", 200, "three\n"},
			{"/containerLogs/default/said/a?limitBytes=5", 200, "one\nt"},
			{"/containerLogs/default/said/a?timestamps=true&tailLines=1", 200, stamp + " three\n"},
			{"/containerLogs/default/said/a?stream=Stderr", 200, ""},
			{"/containerLogs/default/said/a?previous=true", 400, "previous terminated container \"a\" in pod \"said\" not found\n"},
			{"/containerLogs/default/nopull/a", 400, "container \"a\" in pod \"nopull\" is waiting to start: image can't be pulled\n"},
			{"/containerLogs/default/elsewhere/a", 404, "pod \"elsewhere\" does not exist\n"},
			{"/containerLogs/default/nobody/a", 404, "pod \"nobody\" does not exist\n"},
		} {
			if w := ask(c, "GET", q.path); w.Code != q.code || w.Body.String() != q.want {
				t.Errorf("%s: %d %q, want %d %q", q.path, w.Code, w.Body, q.code, q.want)
			}
		}
		// A log that is followed ends with its container, and has what came last.
		followed := make(chan string)
		began := time.Now()
		go func() { followed <- ask(c, "GET", "/containerLogs/default/short/a?follow=true").Body.String() }()
		got := <-followed
		if took := time.Since(began); took != time.Minute {
			t.Errorf("a log was followed for %s", took)
		}
		if lines := strings.Split(got, "\n"); len(lines) < 4 || lines[len(lines)-2] != "ends with exit code 2 (Boom)" {
			t.Errorf("followed: %q", got)
		}
		// ... or with its pod.
		go func() { followed <- ask(c, "GET", "/containerLogs/default/said/a?follow=true").Body.String() }()
		synctest.Wait()
		if err := c.Delete(t.Context(), client.Ref{Resource: "pods", Namespace: "default", Name: "said"}, client.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		if got := <-followed; got != "one\ntwo\nthree\n" {
			t.Errorf("followed: %q", got)
		}
	})
}

func TestWhatNeedsAProcessIsRefused(t *testing.T) {
	staged(t, ``, func(t *testing.T, c *reconciletest.Cluster) {
		for _, path := range []string{"/exec/default/p/a", "/attach/default/p/a", "/portForward/default/p", "/run/default/p/a"} {
			w := ask(c, "POST", path)
			if w.Code != 400 || !strings.Contains(w.Body.String(), "node simulated-0 is simulated: its containers are only reported as running") {
				t.Errorf("%s: %d %s", path, w.Code, w.Body)
			}
		}
		if New(Config{Client: c, Count: 1}).Handler("other") != nil {
			t.Error("there is an API for a node of others")
		}
	})
}
