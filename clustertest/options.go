package clustertest

import (
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// Option changes what [Start] and [New] make.
type Option func(*options)

type options struct {
	controllers []string
	noScheduler bool
	nodes       int
	capacity    corev1.ResourceList
	labels      map[string]string
	leaseEvery  time.Duration
	manifests   [][]byte
	objects     []runtime.Object
	handlers    map[string]http.Handler // by host name
	snapshot    []byte
	listen      string
	now         func() time.Time
	log         *slog.Logger
	err         error // of an option that could not be read
}

// Controllers says which of the controllers of upstream's controller manager run, as its flag --controllers does: a name
// runs that controller, "-name" does not, and "*" runs all others. Without names none runs. Those that belong to the
// API server (custom resources, API services, the objects that every cluster has) always run. The names are those of
// Cluster.Controllers.
func Controllers(names ...string) Option {
	return func(o *options) { o.controllers = append([]string{}, names...) }
}

// NoScheduler leaves pods unbound, for tests that bind them or that play the kubelet themselves.
func NoScheduler() Option { return func(o *options) { o.noScheduler = true } }

// Nodes says how many simulated nodes there are, named node-0, node-1 and so on. The default is one.
func Nodes(count int) Option { return func(o *options) { o.nodes = count } }

// NodeCapacity is what each simulated node has; 32 CPUs, 256 GiB of memory, 1 TiB of disk and 110 pods by default.
func NodeCapacity(capacity corev1.ResourceList) Option {
	return func(o *options) { o.capacity = capacity }
}

// NodeLabels are added to the labels of every simulated node.
func NodeLabels(labels map[string]string) Option { return func(o *options) { o.labels = labels } }

// LeaseEvery is how often each simulated node renews its lease, 20 s by default.
func LeaseEvery(d time.Duration) Option { return func(o *options) { o.leaseEvery = d } }

// Objects are applied before the cluster is ready, in order, but CustomResourceDefinitions first.
func Objects(objects ...runtime.Object) Option {
	return func(o *options) { o.objects = append(o.objects, objects...) }
}

// Manifests are YAML documents of objects that are applied before the cluster is ready, in order, but
// CustomResourceDefinitions first. When the cluster is ready, these are established.
func Manifests(yaml ...string) Option {
	return func(o *options) {
		for _, y := range yaml {
			o.manifests = append(o.manifests, []byte(y))
		}
	}
}

// ManifestFiles are files with such documents.
func ManifestFiles(paths ...string) Option {
	return func(o *options) {
		for _, p := range paths {
			data, err := os.ReadFile(p)
			if err != nil {
				o.err = fmt.Errorf("clustertest: manifest: %w", err)
				return
			}
			o.manifests = append(o.manifests, data)
		}
	}
}

// Webhook has a handler answer, in this process and without TLS, what the API server sends to a host: requests of webhooks
// whose clientConfig.url names the host ("https://HOST/..."), whatever the port and the caBundle are.
func Webhook(host string, h http.Handler) Option {
	return func(o *options) {
		if o.handlers == nil {
			o.handlers = map[string]http.Handler{}
		}
		o.handlers[host] = h
	}
}

// WebhookService is Webhook for what names a service: a webhook's clientConfig.service, or an APIService. The Service
// itself need not exist.
func WebhookService(namespace, name string, h http.Handler) Option {
	return Webhook(name+"."+namespace+".svc", h)
}

// Restore starts from what [Cluster.Snapshot] returned. Names, uids, times and states are as they were; resource versions
// begin anew.
func Restore(snapshot []byte) Option { return func(o *options) { o.snapshot = snapshot } }

// Listen serves the API at a TCP address too ("127.0.0.1:0"), for programs outside of the test: see [Cluster.URL] and
// [Cluster.Kubeconfig]. Not for a bubble of testing/synctest.
func Listen(address string) Option { return func(o *options) { o.listen = address } }

// Clock is what the cluster takes for the present, for example a fixed distance from time.Now. Timers follow the real time,
// so that the clock has to run at its speed; for a time that jumps use testing/synctest.
func Clock(now func() time.Time) Option { return func(o *options) { o.now = now } }

// Log takes what the cluster logs. By default warnings go to the log of the test, and nothing is logged by New.
func Log(l *slog.Logger) Option { return func(o *options) { o.log = l } }

// runs tells whether a controller is among those chosen, as upstream's --controllers chooses.
func (o *options) runs(name string) bool {
	if o.controllers == nil {
		return true
	}
	all := false
	for _, c := range o.controllers {
		switch c {
		case name:
			return true
		case "-" + name:
			return false
		case "*":
			all = true
		}
	}
	return all
}
