// Command webhook-controller watches the custom resource webhooks.example.com and logs what becomes of each
// Webhook. It is a controller in its plainest form: client-go, one informer, three handlers.
package main

import (
	"context"
	"flag"
	"fmt"
	"log"
	"os"
	"os/signal"
	"syscall"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/dynamic/dynamicinformer"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
)

// Webhook is the custom resource as crd.yaml declares it.
type Webhook struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`
	Spec              WebhookSpec `json:"spec"`
}

// WebhookSpec is what the user of a Webhook writes.
type WebhookSpec struct {
	// URL is called for each event.
	URL string `json:"url"`
	// Events are those that the webhook is called for.
	Events []string `json:"events,omitempty"`
}

// webhooks is where the API server serves them: /apis/example.com/v1/webhooks.
var webhooks = schema.GroupVersionResource{Group: "example.com", Version: "v1", Resource: "webhooks"}

func main() {
	kubeconfig := flag.String("kubeconfig", "", "kubeconfig for running outside of a cluster")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *kubeconfig); err != nil {
		log.Fatal(err)
	}
}

// run watches until the context ends.
func run(ctx context.Context, kubeconfig string) error {
	config, err := configure(kubeconfig)
	if err != nil {
		return err
	}
	client, err := dynamic.NewForConfig(config)
	if err != nil {
		return err
	}
	// The informer lists the objects once, watches from there on, and keeps them in a cache. Every ten minutes it shows
	// each of them again, so that what a handler missed is done then.
	factory := dynamicinformer.NewDynamicSharedInformerFactory(client, 10*time.Minute)
	informer := factory.ForResource(webhooks).Informer()
	if _, err := informer.AddEventHandler(handlers()); err != nil {
		return err
	}
	factory.Start(ctx.Done())
	defer factory.Shutdown()
	if !cache.WaitForCacheSync(ctx.Done(), informer.HasSynced) {
		return fmt.Errorf("the webhooks could not be listed: %w", ctx.Err())
	}
	log.Print("Watching webhooks")
	<-ctx.Done()
	return nil
}

// configure finds the API server: that of the cluster the program runs in, or the kubeconfig's.
func configure(kubeconfig string) (*rest.Config, error) {
	if kubeconfig == "" {
		return rest.InClusterConfig()
	}
	return clientcmd.BuildConfigFromFlags("", kubeconfig)
}

// handlers are what the controller does. A real one would put the object's name into a queue here and compare the
// desired with the actual state when it takes the name out again.
func handlers() cache.ResourceEventHandler {
	return cache.ResourceEventHandlerFuncs{
		AddFunc: func(obj any) {
			if w, ok := webhook(obj); ok {
				log.Printf("Webhook added: %s (%s)", w.Name, w.Spec.URL)
			}
		},
		UpdateFunc: func(before, after any) {
			old, ok := webhook(before)
			w, ok2 := webhook(after)
			if ok && ok2 && old.ResourceVersion != w.ResourceVersion {
				log.Printf("Webhook updated: %s (%s)", w.Name, w.Spec.URL)
			}
		},
		DeleteFunc: func(obj any) {
			// A watch that was interrupted may have missed the last state.
			if gone, ok := obj.(cache.DeletedFinalStateUnknown); ok {
				obj = gone.Obj
			}
			if w, ok := webhook(obj); ok {
				log.Printf("Webhook deleted: %s", w.Name)
			}
		},
	}
}

// webhook turns what the informer holds into the Go type.
func webhook(obj any) (*Webhook, bool) {
	u, ok := obj.(*unstructured.Unstructured)
	if !ok {
		return nil, false
	}
	w := &Webhook{}
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(u.Object, w); err != nil {
		log.Printf("Webhook %s cannot be read: %v", u.GetName(), err)
		return nil, false
	}
	return w, true
}
