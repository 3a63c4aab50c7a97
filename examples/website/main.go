// Command website is a controller written with controller-runtime. A Website is a page; the controller keeps a ConfigMap, a
// Deployment and a Service for each, reports in its status whether the pods serve it, and checks in a validating webhook
// what users write. Two copies of it elect a leader.
package main

import (
	"context"
	"crypto/tls"
	"flag"
	"fmt"
	"os"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/scheme"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/healthz"
	"sigs.k8s.io/controller-runtime/pkg/log/zap"
	"sigs.k8s.io/controller-runtime/pkg/metrics/server"
	"sigs.k8s.io/controller-runtime/pkg/webhook"
)

func main() {
	image := flag.String("image", "busybox:demo", "image with an httpd applet that serves the pages")
	namespace := flag.String("namespace", os.Getenv("POD_NAMESPACE"), "namespace that the controller runs in")
	flag.Parse()
	ctrl.SetLogger(zap.New())
	if err := run(ctrl.SetupSignalHandler(), *namespace, *image); err != nil {
		ctrl.Log.Error(err, "website ends")
		os.Exit(1)
	}
}

func run(ctx context.Context, namespace, image string) error {
	config, err := ctrl.GetConfig()
	if err != nil {
		return err
	}
	types := runtime.NewScheme()
	if err := scheme.AddToScheme(types); err != nil {
		return err
	}
	addTypes(types)
	certificate, err := webhookCertificate(ctx, config, types, namespace)
	if err != nil {
		return fmt.Errorf("the webhook's certificate: %w", err)
	}
	manager, err := ctrl.NewManager(config, ctrl.Options{
		Scheme:                        types,
		LeaderElection:                true,
		LeaderElectionID:              "website.example.com",
		LeaderElectionNamespace:       namespace,
		LeaderElectionReleaseOnCancel: true,
		HealthProbeBindAddress:        ":8081",
		Metrics:                       server.Options{BindAddress: "0"},
		WebhookServer: webhook.NewServer(webhook.Options{Port: 9443, TLSOpts: []func(*tls.Config){func(c *tls.Config) {
			c.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return certificate, nil }
		}}}),
	})
	if err != nil {
		return err
	}
	r := &reconciler{Client: manager.GetClient(), scheme: types, image: image}
	if err := r.register(manager); err != nil {
		return err
	}
	if err := ctrl.NewWebhookManagedBy(manager, &Website{}).WithValidator(validator{}).Complete(); err != nil {
		return err
	}
	if err := manager.AddReadyzCheck("webhook", manager.GetWebhookServer().StartedChecker()); err != nil {
		return err
	}
	if err := manager.AddHealthzCheck("ping", healthz.Ping); err != nil {
		return err
	}
	return manager.Start(ctx)
}
