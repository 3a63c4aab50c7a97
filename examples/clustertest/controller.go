package main

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	listers "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/workqueue"
)

const (
	// livesFor is the annotation of a namespace that says for how long it is there: a Go duration from its creation on.
	livesFor = "example.com/lives-for"
	// notice is how long before its end an event speaks of it.
	notice = time.Hour
)

// controller deletes namespaces whose time is over.
type controller struct {
	client   kubernetes.Interface
	informer cache.SharedIndexInformer
	lister   listers.NamespaceLister
	factory  informers.SharedInformerFactory
	queue    workqueue.TypedRateLimitingInterface[string]
}

func newController(client kubernetes.Interface) *controller {
	factory := informers.NewSharedInformerFactory(client, 0)
	namespaces := factory.Core().V1().Namespaces()
	c := &controller{client: client, informer: namespaces.Informer(), lister: namespaces.Lister(), factory: factory,
		queue: workqueue.NewTypedRateLimitingQueue(workqueue.DefaultTypedControllerRateLimiter[string]())}
	enqueue := func(obj any) { c.queue.Add(obj.(*corev1.Namespace).Name) }
	_, err := c.informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: enqueue, UpdateFunc: func(_, obj any) { enqueue(obj) },
	})
	if err != nil {
		panic(err) // it has not started: it takes handlers
	}
	return c
}

// run works until ctx is done.
func (c *controller) run(ctx context.Context) error {
	defer c.factory.Shutdown()
	defer c.queue.ShutDown()
	c.factory.Start(ctx.Done())
	if !cache.WaitForCacheSync(ctx.Done(), c.informer.HasSynced) {
		return nil // ctx is done
	}
	var worker sync.WaitGroup
	worker.Go(func() {
		for c.next(ctx) {
		}
	})
	<-ctx.Done()
	c.queue.ShutDown()
	worker.Wait()
	return nil
}

// next looks at one namespace.
func (c *controller) next(ctx context.Context) bool {
	name, quit := c.queue.Get()
	if quit {
		return false
	}
	defer c.queue.Done(name)
	again, err := c.reconcile(ctx, name)
	switch {
	case err != nil:
		c.queue.AddRateLimited(name)
	case again > 0:
		c.queue.Forget(name)
		c.queue.AddAfter(name, again)
	default:
		c.queue.Forget(name)
	}
	return true
}

// reconcile does what is due for a namespace, and returns when to look at it again, 0 for when it changes.
func (c *controller) reconcile(ctx context.Context, name string) (time.Duration, error) {
	namespace, err := c.lister.Get(name)
	if apierrors.IsNotFound(err) {
		return 0, nil
	}
	if err != nil || namespace.DeletionTimestamp != nil || namespace.Annotations[livesFor] == "" {
		return 0, err
	}
	life, err := time.ParseDuration(namespace.Annotations[livesFor])
	if err != nil {
		return 0, c.event(ctx, namespace, corev1.EventTypeWarning, "NoDuration", fmt.Sprintf("%s: %v", livesFor, err))
	}
	left := time.Until(namespace.CreationTimestamp.Add(life))
	switch {
	case left > notice:
		return left - notice, nil
	case left > 0:
		return left, c.event(ctx, namespace, corev1.EventTypeNormal, "Expiring", "the namespace and all that is in it goes in less than an hour")
	}
	err = c.client.CoreV1().Namespaces().Delete(ctx, name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &namespace.UID}})
	if apierrors.IsNotFound(err) {
		return 0, nil
	}
	return 0, err
}

// event tells the users of a namespace something. Its name is made of what it says, so that it is said once.
func (c *controller) event(ctx context.Context, namespace *corev1.Namespace, kind, reason, message string) error {
	now := metav1.Now()
	_, err := c.client.CoreV1().Events(namespace.Name).Create(ctx, &corev1.Event{
		ObjectMeta:     metav1.ObjectMeta{Name: fmt.Sprintf("%s.%s.%s", namespace.Name, strings.ToLower(reason), namespace.ResourceVersion)},
		InvolvedObject: corev1.ObjectReference{APIVersion: "v1", Kind: "Namespace", Name: namespace.Name, Namespace: namespace.Name, UID: namespace.UID},
		Type:           kind, Reason: reason, Message: message, FirstTimestamp: now, LastTimestamp: now, Count: 1,
		Source: corev1.EventSource{Component: "expiring-namespaces"},
	}, metav1.CreateOptions{})
	if apierrors.IsAlreadyExists(err) {
		return nil
	}
	return err
}
