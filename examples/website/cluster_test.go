package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/scheme"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/config"
	"sigs.k8s.io/controller-runtime/pkg/log/zap"
	"sigs.k8s.io/controller-runtime/pkg/metrics/server"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"coracle.dev/coracle/clustertest"
)

func TestMain(m *testing.M) {
	ctrl.SetLogger(zap.New(zap.WriteTo(io.Discard)))
	os.Exit(m.Run())
}

// start gives a cluster with the manifests of this folder, where the webhook is asked in this process, and a client of
// the administrator's.
func start(t *testing.T) (*clustertest.Cluster, client.Client) {
	t.Helper()
	types := runtime.NewScheme()
	if err := scheme.AddToScheme(types); err != nil {
		t.Fatal(err)
	}
	addTypes(types)
	cluster := clustertest.Start(t, clustertest.Nodes(2),
		clustertest.ManifestFiles("crd.yaml", "controller.yaml"),
		clustertest.WebhookService("website-system", serviceName, admission.WithValidator(types, validator{})))
	c, err := client.New(cluster.Config(), client.Options{Scheme: types})
	if err != nil {
		t.Fatal(err)
	}
	return cluster, c
}

// controller runs one copy of the controller, with the rights that controller.yaml gives it, until the test ends or stop is
// called. elected is closed when it leads.
func controller(t *testing.T, cluster *clustertest.Cluster, types *runtime.Scheme) (elected <-chan struct{}, stop func()) {
	t.Helper()
	skip := true
	manager, err := ctrl.NewManager(cluster.ConfigFor("system:serviceaccount:website-system:website", "system:serviceaccounts", "system:serviceaccounts:website-system"), ctrl.Options{
		Scheme: types, LeaderElection: true, LeaderElectionID: "website.example.com", LeaderElectionNamespace: "website-system",
		LeaderElectionReleaseOnCancel: true, Metrics: server.Options{BindAddress: "0"},
		Controller: config.Controller{SkipNameValidation: &skip},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := (&reconciler{Client: manager.GetClient(), scheme: types, image: "busybox:demo"}).register(manager); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- manager.Start(ctx) }()
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
	return manager.Elected(), stop
}

func website(name, html string) *Website {
	return &Website{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}, Spec: WebsiteSpec{HTML: html, Replicas: 2, Archive: true}}
}

// TestWebsite follows a Website from its creation to its archive.
func TestWebsite(t *testing.T) {
	ctx := t.Context()
	cluster, c := start(t)
	controller(t, cluster, c.Scheme())
	if err := c.Create(ctx, website("hello", "<title>Hello</title>")); err != nil {
		t.Fatal(err)
	}
	key := client.ObjectKey{Namespace: "default", Name: "hello"}
	cluster.Eventually(t, func() error {
		site := &Website{}
		if err := c.Get(ctx, key, site); err != nil {
			return err
		}
		if !meta.IsStatusConditionTrue(site.Status.Conditions, available) || site.Status.ReadyReplicas != 2 {
			return fmt.Errorf("status: %+v", site.Status)
		}
		return nil
	})
	service := &corev1.Service{}
	if err := c.Get(ctx, key, service); err != nil || service.Spec.ClusterIP == "" {
		t.Errorf("the service: %v, %v", service.Spec, err)
	}
	if err := c.Delete(ctx, website("hello", "")); err != nil {
		t.Fatal(err)
	}
	cluster.Eventually(t, func() error { // what the Website owns is collected
		for _, object := range []client.Object{&Website{}, &appsv1.Deployment{}, &corev1.Service{}} {
			if err := c.Get(ctx, key, object); !apierrors.IsNotFound(err) {
				return fmt.Errorf("%T is still there (%v)", object, err)
			}
		}
		return nil
	})
	archive := &corev1.ConfigMap{}
	if err := c.Get(ctx, client.ObjectKey{Namespace: "default", Name: "hello-archive"}, archive); err != nil || !strings.Contains(archive.Data["index.html"], "Hello") {
		t.Errorf("the archive: %v, %v", archive.Data, err)
	}
}

// TestWebhook refuses what the validator refuses, and what the rules of the definition do.
func TestWebhook(t *testing.T) {
	_, c := start(t)
	err := c.Create(t.Context(), website("script", "<script>"))
	if err == nil || !strings.Contains(err.Error(), "scripts are not served") {
		t.Errorf("a script: %v", err)
	}
	many := website("many", "<title>Many</title>")
	many.Spec.Replicas = 11
	if err := c.Create(t.Context(), many); !apierrors.IsInvalid(err) {
		t.Errorf("eleven replicas: %v", err)
	}
}

// TestLeader has two copies of the controller in a bubble: the second takes over when the first ends.
func TestLeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cluster, c := start(t)
		first, stop := controller(t, cluster, c.Scheme())
		<-first
		second, _ := controller(t, cluster, c.Scheme())
		time.Sleep(10 * time.Minute)
		select {
		case <-second:
			t.Error("there are two leaders")
		default:
		}
		stop()
		time.Sleep(time.Minute)
		select {
		case <-second:
		default:
			t.Error("nobody leads a minute after the first copy ended")
		}
		if err := c.Create(t.Context(), website("hello", "<title>Hello</title>")); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		site := &Website{}
		if err := c.Get(t.Context(), client.ObjectKey{Namespace: "default", Name: "hello"}, site); err != nil || site.Status.ReadyReplicas != 2 {
			t.Errorf("the new leader's work: %+v, %v", site.Status, err)
		}
	})
}
