package clustertest

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
)

const widgets = `
apiVersion: example.com/v1
kind: Widget
metadata: {name: first}
spec: {size: 3}
---
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: widgets.example.com}
spec:
  group: example.com
  names: {kind: Widget, plural: widgets}
  scope: Namespaced
  versions:
  - name: v1
    served: true
    storage: true
    schema:
      openAPIV3Schema:
        type: object
        properties:
          spec: {type: object, properties: {size: {type: integer, maximum: 10}}}
`

var widgetResource = schema.GroupVersionResource{Group: "example.com", Version: "v1", Resource: "widgets"}

func widget(name string, size int64) *unstructured.Unstructured {
	return &unstructured.Unstructured{Object: map[string]any{"apiVersion": "example.com/v1", "kind": "Widget",
		"metadata": map[string]any{"name": name}, "spec": map[string]any{"size": size}}}
}

// TestCustomResources installs a definition and an object of it that stands before it, and finds both when the cluster is ready.
func TestCustomResources(t *testing.T) {
	c := Start(t, Manifests(widgets), Objects(&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "typed"}}))
	all, err := c.Dynamic().Resource(widgetResource).List(t.Context(), metav1.ListOptions{})
	if err != nil || len(all.Items) != 1 || all.Items[0].GetName() != "first" {
		t.Fatalf("widgets: %v, %v", all, err)
	}
	if _, err := c.Client().CoreV1().ConfigMaps("default").Get(t.Context(), "typed", metav1.GetOptions{}); err != nil {
		t.Error(err)
	}
	_, err = c.Dynamic().Resource(widgetResource).Namespace("default").Create(t.Context(), widget("big", 11), metav1.CreateOptions{})
	if !apierrors.IsInvalid(err) {
		t.Errorf("a widget beyond the maximum of the schema: %v", err)
	}
	if _, err := New(t.Context(), Manifests("apiVersion: example.com/v1\nkind: Gadget\nmetadata: {name: x}")); err == nil || !strings.Contains(err.Error(), "CustomResourceDefinition") {
		t.Errorf("an object without a definition: %v", err)
	}
	if _, err := New(t.Context(), ManifestFiles("testdata/none.yaml")); err == nil {
		t.Error("a file that does not exist is no error")
	}
}

// refuse is a webhook that lets no object with the label "bad" in.
func refuse(t *testing.T, seen *int) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		*seen++
		var review admissionv1.AdmissionReview
		if err := json.NewDecoder(r.Body).Decode(&review); err != nil {
			t.Error(err)
		}
		if r.URL.Path != "/check" {
			t.Errorf("asked at %s", r.URL)
		}
		review.Response = &admissionv1.AdmissionResponse{UID: review.Request.UID,
			Allowed: !strings.Contains(string(review.Request.Object.Raw), `"bad"`), Result: &metav1.Status{Message: "it is bad"}}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(review)
	})
}

func webhookManifest(clientConfig string) string {
	return `
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingWebhookConfiguration
metadata: {name: refuse}
webhooks:
- name: refuse.example.com
  admissionReviewVersions: [v1]
  sideEffects: None
  failurePolicy: Fail
  clientConfig: ` + clientConfig + `
  rules:
  - {apiGroups: [example.com], apiVersions: [v1], operations: [CREATE], resources: [widgets]}
`
}

// TestWebhooks asks a handler of the test before an object is stored, by URL and by service, in real time and in a bubble.
func TestWebhooks(t *testing.T) {
	for name, hook := range map[string]struct {
		config string
		option func(http.Handler) Option
	}{
		"url": {`{url: "https://hooks.test:9443/check"}`, func(h http.Handler) Option { return Webhook("hooks.test", h) }},
		"service": {`{service: {namespace: system, name: hooks, path: /check}}`,
			func(h http.Handler) Option { return WebhookService("system", "hooks", h) }},
	} {
		check := func(t *testing.T) {
			seen := 0
			c := Start(t, Manifests(widgets), hook.option(refuse(t, &seen)))
			if err := c.Apply(t.Context(), webhookManifest(hook.config)); err != nil {
				t.Fatal(err)
			}
			in := c.Dynamic().Resource(widgetResource).Namespace("default")
			if _, err := in.Create(t.Context(), widget("good", 1), metav1.CreateOptions{}); err != nil {
				t.Error(err)
			}
			_, err := in.Create(t.Context(), widget("bad", 1), metav1.CreateOptions{})
			if err == nil || !strings.Contains(err.Error(), "it is bad") {
				t.Errorf("a widget that the webhook refuses: %v", err)
			}
			if seen != 2 {
				t.Errorf("the webhook was asked %d times", seen)
			}
		}
		t.Run(name, check)
		t.Run(name+" in a bubble", func(t *testing.T) { synctest.Test(t, check) })
	}
}

// TestUsers lets a user do what a role says and nothing else.
func TestUsers(t *testing.T) {
	c := Start(t, Objects(
		&rbacv1.Role{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "reader"},
			Rules: []rbacv1.PolicyRule{{APIGroups: []string{""}, Resources: []string{"configmaps"}, Verbs: []string{"list"}}}},
		&rbacv1.RoleBinding{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "reader"},
			RoleRef:  rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: "reader"},
			Subjects: []rbacv1.Subject{{Kind: "Group", APIGroup: rbacv1.GroupName, Name: "readers"}}},
	))
	jane := kubernetes.NewForConfigOrDie(c.ConfigFor("jane", "readers"))
	if _, err := jane.CoreV1().ConfigMaps("default").List(t.Context(), metav1.ListOptions{}); err != nil {
		t.Error(err)
	}
	if _, err := jane.CoreV1().Secrets("default").List(t.Context(), metav1.ListOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("secrets: %v", err)
	}
	config := c.Config()
	config.BearerToken = "nobody's"
	if _, err := kubernetes.NewForConfigOrDie(config).CoreV1().Secrets("").List(t.Context(), metav1.ListOptions{}); !apierrors.IsUnauthorized(err) {
		t.Errorf("with a token of nobody: %v", err)
	}
}

// TestControllers runs some and leaves others out.
func TestControllers(t *testing.T) {
	pods := func(c *Cluster) int {
		t.Helper()
		if err := c.Settle(t.Context()); err != nil {
			t.Fatal(err)
		}
		all, err := c.Client().CoreV1().Pods("default").List(t.Context(), metav1.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range all.Items {
			if p.Spec.NodeName != "" {
				t.Errorf("%s is bound to %s without a scheduler", p.Name, p.Spec.NodeName)
			}
		}
		return len(all.Items)
	}
	for _, test := range []struct {
		controllers []string
		want        int
	}{
		{[]string{}, 0},
		{[]string{"deployment-controller", "replicaset-controller", "serviceaccount-controller"}, 2},
		{[]string{"*", "-replicaset-controller"}, 0},
		{[]string{"*"}, 2},
	} {
		c := Start(t, NoScheduler(), Nodes(0), Controllers(test.controllers...), Objects(
			&corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "default"}}, deployment("web", 2)))
		if n := pods(c); n != test.want {
			t.Errorf("with %v there are %d pods, want %d", test.controllers, n, test.want)
		}
		if len(c.Controllers()) < 30 {
			t.Errorf("known controllers: %v", c.Controllers())
		}
	}
}

// TestSnapshot goes on in a second cluster where the first ended.
func TestSnapshot(t *testing.T) {
	ready := func(c *Cluster) {
		t.Helper()
		c.Eventually(t, func() error {
			d, err := c.Client().AppsV1().Deployments("default").Get(t.Context(), "web", metav1.GetOptions{})
			if err == nil && d.Status.AvailableReplicas != *d.Spec.Replicas {
				err = fmt.Errorf("%d of %d are available", d.Status.AvailableReplicas, *d.Spec.Replicas)
			}
			return err
		})
	}
	first := Start(t, Manifests(widgets), Objects(deployment("web", 2)))
	ready(first)
	saved, err := first.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	second := Start(t, Restore(saved))
	third := Start(t, Restore(saved))
	uids := map[string]string{}
	for i, c := range []*Cluster{second, third} {
		ready(c)
		w, err := c.Dynamic().Resource(widgetResource).Namespace("default").Get(t.Context(), "first", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		uids[string(w.GetUID())] = ""
		if err := c.Client().AppsV1().Deployments("default").Delete(t.Context(), "web", metav1.DeleteOptions{}); err != nil {
			t.Fatalf("cluster %d: %v", i, err)
		}
	}
	if len(uids) != 1 {
		t.Errorf("the widget has %d uids", len(uids))
	}
	if _, err := New(t.Context(), Restore([]byte(`{"format": "else"}`))); err == nil || !strings.Contains(err.Error(), "format") {
		t.Errorf("of another format: %v", err)
	}
}

// TestListen reaches the cluster as a program outside of the test does.
func TestListen(t *testing.T) {
	c := Start(t, Listen("127.0.0.1:0"))
	config, err := clientcmd.RESTConfigFromKubeConfig(c.Kubeconfig())
	if err != nil {
		t.Fatal(err)
	}
	if config.Host != c.URL() {
		t.Errorf("the kubeconfig says %s, the cluster %s", config.Host, c.URL())
	}
	outside := kubernetes.NewForConfigOrDie(config)
	w, err := outside.CoreV1().ConfigMaps("default").Watch(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Client().CoreV1().ConfigMaps("default").Create(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "seen"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	for ev := range w.ResultChan() {
		if ev.Object.(*corev1.ConfigMap).Name == "seen" {
			w.Stop()
			break
		}
	}
	if Start(t).Kubeconfig() != nil {
		t.Error("a cluster without a port has a kubeconfig")
	}
}

// TestClock starts a cluster that takes the present to be far ahead.
func TestClock(t *testing.T) {
	ahead := 1000 * time.Hour
	c := Start(t, Clock(func() time.Time { return time.Now().Add(ahead) }))
	made, err := c.Client().CoreV1().ConfigMaps("default").Create(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "x"}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if made.CreationTimestamp.Time.Before(time.Now().Add(ahead - time.Hour)) {
		t.Errorf("created at %s", made.CreationTimestamp)
	}
}
