package main

import (
	"context"
	"fmt"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/intstr"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"
	"sigs.k8s.io/controller-runtime/pkg/log"
)

// finalizer keeps a Website until its page is in the archive.
const finalizer = "example.com/archive"

// available is the condition of a Website all of whose pods serve.
const available = "Available"

type reconciler struct {
	client.Client
	scheme *runtime.Scheme
	image  string
}

// register has the manager call Reconcile for each Website that changes, or one of whose objects does.
func (r *reconciler) register(manager ctrl.Manager) error {
	return ctrl.NewControllerManagedBy(manager).
		For(&Website{}).
		Owns(&corev1.ConfigMap{}).
		Owns(&appsv1.Deployment{}).
		Owns(&corev1.Service{}).
		Complete(r)
}

// Reconcile makes the objects of one Website as they should be.
func (r *reconciler) Reconcile(ctx context.Context, request ctrl.Request) (ctrl.Result, error) {
	site := &Website{}
	if err := r.Get(ctx, request.NamespacedName, site); err != nil {
		return ctrl.Result{}, client.IgnoreNotFound(err)
	}
	if !site.DeletionTimestamp.IsZero() {
		return ctrl.Result{}, r.finish(ctx, site)
	}
	if site.Spec.Archive && controllerutil.AddFinalizer(site, finalizer) || !site.Spec.Archive && controllerutil.RemoveFinalizer(site, finalizer) {
		if err := r.Update(ctx, site); err != nil {
			return ctrl.Result{}, err
		}
	}
	deployment := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Namespace: site.Namespace, Name: site.Name}}
	page := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: site.Namespace, Name: site.Name + "-page"}}
	service := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: site.Namespace, Name: site.Name}}
	for _, o := range []struct {
		object client.Object
		fill   func()
	}{
		{page, func() { page.Data = map[string]string{"index.html": site.Spec.HTML} }},
		{deployment, func() { r.fillDeployment(deployment, site) }},
		{service, func() { fillService(service, site) }},
	} {
		done, err := controllerutil.CreateOrUpdate(ctx, r.Client, o.object, func() error {
			o.fill()
			return controllerutil.SetControllerReference(site, o.object, r.scheme)
		})
		if err != nil {
			return ctrl.Result{}, fmt.Errorf("%T %s: %w", o.object, o.object.GetName(), err)
		}
		if done != controllerutil.OperationResultNone {
			log.FromContext(ctx).Info(string(done), "object", fmt.Sprintf("%T", o.object), "name", o.object.GetName())
		}
	}
	return ctrl.Result{}, r.report(ctx, site, deployment)
}

// report writes the status, if it changed.
func (r *reconciler) report(ctx context.Context, site *Website, deployment *appsv1.Deployment) error {
	before := site.DeepCopyObject().(*Website)
	ready := deployment.Status.ReadyReplicas
	condition := metav1.Condition{Type: available, Status: metav1.ConditionTrue, Reason: "PodsReady",
		Message: fmt.Sprintf("%d pods serve the page", ready), ObservedGeneration: site.Generation}
	if ready < site.Spec.Replicas {
		condition.Status, condition.Reason = metav1.ConditionFalse, "PodsNotReady"
		condition.Message = fmt.Sprintf("%d of %d pods serve the page", ready, site.Spec.Replicas)
	}
	changed := meta.SetStatusCondition(&site.Status.Conditions, condition)
	if !changed && site.Status.ReadyReplicas == ready {
		return nil
	}
	site.Status.ReadyReplicas = ready
	return r.Status().Patch(ctx, site, client.MergeFrom(before))
}

// finish puts the page into the archive and lets the Website go. What it owns is collected by the cluster.
func (r *reconciler) finish(ctx context.Context, site *Website) error {
	if !controllerutil.ContainsFinalizer(site, finalizer) {
		return nil
	}
	archive := &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Namespace: site.Namespace, Name: site.Name + "-archive"},
		Data:       map[string]string{"index.html": site.Spec.HTML},
	}
	if err := r.Create(ctx, archive); err != nil && !apierrors.IsAlreadyExists(err) {
		return err
	}
	controllerutil.RemoveFinalizer(site, finalizer)
	return r.Update(ctx, site)
}

func labels(site *Website) map[string]string { return map[string]string{"website": site.Name} }

// fillDeployment sets what the controller decides, and leaves alone what the cluster filled in.
func (r *reconciler) fillDeployment(d *appsv1.Deployment, site *Website) {
	d.Spec.Replicas = &site.Spec.Replicas
	d.Spec.Selector = &metav1.LabelSelector{MatchLabels: labels(site)}
	d.Spec.Template.Labels = labels(site)
	d.Spec.Template.Spec.Volumes = []corev1.Volume{{Name: "page", VolumeSource: corev1.VolumeSource{
		ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: site.Name + "-page"}}}}}
	if len(d.Spec.Template.Spec.Containers) == 0 {
		d.Spec.Template.Spec.Containers = make([]corev1.Container, 1)
	}
	c := &d.Spec.Template.Spec.Containers[0]
	c.Name, c.Image = "web", r.image
	c.Command = []string{"httpd", "-f", "-p", "8080", "-h", "/page"}
	c.Ports = []corev1.ContainerPort{{ContainerPort: 8080, Protocol: corev1.ProtocolTCP}}
	c.VolumeMounts = []corev1.VolumeMount{{Name: "page", MountPath: "/page", ReadOnly: true}}
}

func fillService(s *corev1.Service, site *Website) {
	s.Spec.Selector = labels(site)
	s.Spec.Ports = []corev1.ServicePort{{Port: 80, TargetPort: intstr.FromInt32(8080), Protocol: corev1.ProtocolTCP}}
}
