package main

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"coracle.dev/coracle/clustertest"
)

// start runs the controller until the test ends, or until stop.
func start(t *testing.T, client kubernetes.Interface) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- newController(client).run(ctx) }()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(stop)
	return stop
}

func create(t *testing.T, client kubernetes.Interface, name, life string) {
	t.Helper()
	_, err := client.CoreV1().Namespaces().Create(t.Context(),
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Annotations: map[string]string{livesFor: life}}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
}

// exists tells whether a namespace is there, once everybody has done what there is to do.
func exists(t *testing.T, client kubernetes.Interface, name string) bool {
	t.Helper()
	synctest.Wait()
	_, err := client.CoreV1().Namespaces().Get(t.Context(), name, metav1.GetOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		t.Fatal(err)
	}
	return err == nil
}

func reasons(t *testing.T, client kubernetes.Interface, namespace string) []string {
	t.Helper()
	synctest.Wait()
	events, err := client.CoreV1().Events(namespace).List(t.Context(), metav1.ListOptions{FieldSelector: "involvedObject.kind=Namespace"})
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, e := range events.Items {
		all = append(all, e.Reason)
	}
	return all
}

// TestExpires waits for two days. What runs in the namespace goes with it.
func TestExpires(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cluster := clustertest.Start(t, clustertest.ManifestFiles("testdata/web.yaml"))
		client := cluster.Client()
		start(t, client)
		pods := func() int {
			synctest.Wait()
			all, err := client.CoreV1().Pods("preview").List(t.Context(), metav1.ListOptions{FieldSelector: "status.phase=Running"})
			if err != nil {
				t.Fatal(err)
			}
			return len(all.Items)
		}
		time.Sleep(46*time.Hour + 59*time.Minute)
		if n := pods(); n != 3 || len(reasons(t, client, "preview")) > 0 {
			t.Errorf("after 46:59 there are %d pods, want 3, and events %v, want none", n, reasons(t, client, "preview"))
		}
		time.Sleep(2 * time.Minute)
		if got := reasons(t, client, "preview"); len(got) != 1 || got[0] != "Expiring" {
			t.Errorf("after 47:01 events are %v", got)
		}
		time.Sleep(time.Hour)
		if exists(t, client, "preview") || pods() > 0 {
			t.Error("after 48:01 the namespace or a pod of it is still there")
		}
		if !exists(t, client, "default") {
			t.Error("a namespace without the annotation is gone")
		}
	})
}

// TestLongerLife changes the annotation while the controller waits.
func TestLongerLife(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := clustertest.Start(t).Client()
		start(t, client)
		create(t, client, "preview", "24h")
		time.Sleep(23*time.Hour + 30*time.Minute)
		namespace, err := client.CoreV1().Namespaces().Get(t.Context(), "preview", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		namespace.Annotations[livesFor] = "48h"
		if _, err := client.CoreV1().Namespaces().Update(t.Context(), namespace, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(24 * time.Hour)
		if !exists(t, client, "preview") {
			t.Error("the namespace went before its new time")
		}
		time.Sleep(time.Hour)
		if exists(t, client, "preview") {
			t.Error("the namespace outlived its new time")
		}
	})
}

// TestRestart has nobody there when the time comes: the next copy of the controller finds it.
func TestRestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := clustertest.Start(t).Client()
		stop := start(t, client)
		create(t, client, "preview", "12h")
		time.Sleep(time.Hour)
		stop()
		time.Sleep(24 * time.Hour)
		if !exists(t, client, "preview") {
			t.Fatal("the namespace went without a controller")
		}
		start(t, client)
		time.Sleep(time.Second) // it reads what there is
		if exists(t, client, "preview") {
			t.Error("the new controller leaves the namespace")
		}
	})
}

// TestNoDuration tells users what they wrote wrong, and leaves the namespace alone.
func TestNoDuration(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := clustertest.Start(t).Client()
		start(t, client)
		create(t, client, "preview", "two days")
		time.Sleep(time.Minute)
		if got := reasons(t, client, "preview"); len(got) != 1 || got[0] != "NoDuration" {
			t.Errorf("events are %v", got)
		}
		time.Sleep(72 * time.Hour)
		if !exists(t, client, "preview") {
			t.Fatal("the namespace is gone")
		}
	})
}

// TestInRealTime is the same kind of test without a bubble: it waits for what the cluster does.
func TestInRealTime(t *testing.T) {
	cluster := clustertest.Start(t)
	client := cluster.Client()
	start(t, client)
	create(t, client, "preview", "1ns")
	cluster.Eventually(t, func() error {
		_, err := client.CoreV1().Namespaces().Get(t.Context(), "preview", metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return nil
		}
		if err == nil {
			err = context.DeadlineExceeded
		}
		return err
	})
}
