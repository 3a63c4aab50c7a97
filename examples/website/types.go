package main

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// groupVersion is where the API server serves Websites.
var groupVersion = schema.GroupVersion{Group: "example.com", Version: "v1"}

// Website is a page that is served by pods of the cluster.
type Website struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`
	Spec              WebsiteSpec   `json:"spec"`
	Status            WebsiteStatus `json:"status,omitempty"`
}

// WebsiteSpec is what the user wants.
type WebsiteSpec struct {
	// HTML is the page.
	HTML string `json:"html"`
	// Replicas is how many pods serve it.
	Replicas int32 `json:"replicas,omitempty"`
	// Archive keeps the page in a ConfigMap when the Website is deleted.
	Archive bool `json:"archive,omitempty"`
}

// WebsiteStatus is what the controller saw.
type WebsiteStatus struct {
	// ReadyReplicas is how many pods serve the page.
	ReadyReplicas int32 `json:"readyReplicas,omitempty"`
	// Conditions: Available says whether all pods serve.
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// WebsiteList is what a list request answers with.
type WebsiteList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []Website `json:"items"`
}

// DeepCopyObject implements runtime.Object.
func (w *Website) DeepCopyObject() runtime.Object {
	c := *w
	c.ObjectMeta = *w.ObjectMeta.DeepCopy()
	c.Status.Conditions = nil
	for _, condition := range w.Status.Conditions {
		c.Status.Conditions = append(c.Status.Conditions, *condition.DeepCopy())
	}
	return &c
}

// DeepCopyObject implements runtime.Object.
func (l *WebsiteList) DeepCopyObject() runtime.Object {
	c := *l
	c.ListMeta = *l.ListMeta.DeepCopy()
	c.Items = make([]Website, len(l.Items))
	for i := range l.Items {
		c.Items[i] = *l.Items[i].DeepCopyObject().(*Website)
	}
	return &c
}

// addTypes makes the types known to clients.
func addTypes(s *runtime.Scheme) {
	s.AddKnownTypes(groupVersion, &Website{}, &WebsiteList{})
	metav1.AddToGroupVersion(s, groupVersion)
}
