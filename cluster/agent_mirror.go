package cluster

import (
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/api/reference"
	"coracle.dev/coracle/client"
	"coracle.dev/coracle/client/remote"
	"coracle.dev/coracle/controllers/nodejoin"
	"coracle.dev/coracle/store"
)

// ownEvents is how many events a node remembers that it wrote, so that repetitions are counted and not written anew.
const ownEvents = 256

// mirrorOf says what a node mirrors of the cluster: its own pods and what they refer to whole, and of the rest what
// services, names, ways and policies are made of.
func mirrorOf(node string) remote.Config {
	own := "spec.nodeName=" + node
	return remote.Config{
		Sources: []remote.Source{
			{Resource: client.Nodes.Name, Trim: func(o api.Object) { trimNode(o.(*corev1.Node), node) }},
			{Resource: client.Pods.Name, Trim: func(o api.Object) { trimPod(o.(*corev1.Pod), node) }},
			{Resource: client.Namespaces.Name},
			{Resource: client.Services.Name},
			{Resource: client.EndpointSlices.Name},
			{Resource: client.NetworkPolicies.Name},
			{Resource: client.RuntimeClasses.Name},
			{Resource: "clusternetworkpolicies.policy.networking.k8s.io", Optional: true},
			{Resource: "clustertrustbundles.certificates.k8s.io", Optional: true},
			{Resource: "podcertificaterequests.certificates.k8s.io", FieldSelector: own, Optional: true},
		},
		Objects: []store.Key{
			{Resource: client.Leases.Name, Namespace: corev1.NamespaceNodeLease, Name: node},
			{Resource: client.ConfigMaps.Name, Namespace: metav1.NamespaceSystem, Name: nodejoin.DNSConfigMap},
		},
		Needs: func(obj api.Object) []store.Key { return needs(obj, node) },
		Watchable: func(resource string) bool {
			return resource == client.Secrets.Name || resource == client.ConfigMaps.Name
		},
		Settled: claimSettled,
		Keep:    map[string]int{client.Events.Name: ownEvents},
	}
}

const resourceClaims = "resourceclaims.resource.k8s.io"

// needs are the objects that a node may read because one of its pods refers to them.
func needs(obj api.Object, node string) []store.Key {
	var keys []store.Key
	seen := map[store.Key]bool{}
	add := func(resource, namespace, name string) bool {
		key := store.Key{Resource: resource, Namespace: namespace, Name: name}
		if name != "" && !seen[key] {
			seen[key] = true
			keys = append(keys, key)
		}
		return true
	}
	switch o := obj.(type) {
	case *corev1.Pod:
		if o.Spec.NodeName != node || o.Status.Phase == corev1.PodSucceeded || o.Status.Phase == corev1.PodFailed {
			return nil
		}
		of := func(resource string) reference.Visit {
			return func(name string) bool { return add(resource, o.Namespace, name) }
		}
		reference.Secrets(o, of(client.Secrets.Name))
		reference.ConfigMaps(o, of(client.ConfigMaps.Name))
		reference.VolumeClaims(o, of(client.PersistentVolumeClaims.Name))
		reference.ResourceClaims(o, of(resourceClaims))
		if hasCertificate(o) {
			add(client.ServiceAccounts.Name, o.Namespace, o.Spec.ServiceAccountName)
		}
	case *corev1.PersistentVolumeClaim:
		add(client.PersistentVolumes.Name, "", o.Spec.VolumeName)
	case *corev1.PersistentVolume:
		reference.VolumeSecrets(o, func(namespace, name string) bool { return add(client.Secrets.Name, namespace, name) })
	}
	return keys
}

// hasCertificate tells whether a pod has a certificate as a volume, which names the account.
func hasCertificate(p *corev1.Pod) bool {
	for i := range p.Spec.Volumes {
		if projected := p.Spec.Volumes[i].Projected; projected != nil {
			for j := range projected.Sources {
				if projected.Sources[j].PodCertificate != nil {
					return true
				}
			}
		}
	}
	return false
}

// claimSettled tells that an object that can only be asked for will hardly change.
func claimSettled(obj api.Object) bool {
	switch o := obj.(type) {
	case *corev1.PersistentVolumeClaim:
		return o.Status.Phase == corev1.ClaimBound
	case *corev1.PersistentVolume:
		return o.Status.Phase == corev1.VolumeBound
	}
	return true
}

// trimNode leaves of other nodes what leads to them.
func trimNode(n *corev1.Node, own string) {
	if n.Name == own {
		return
	}
	n.Status.Images, n.Status.VolumesInUse, n.Status.VolumesAttached = nil, nil, nil
	n.Status.Capacity, n.Status.Allocatable = nil, nil
}

// trimPod leaves of other nodes' pods what policies and names speak of: labels, addresses, ports.
func trimPod(p *corev1.Pod, own string) {
	if p.Spec.NodeName == own {
		return
	}
	p.Annotations, p.OwnerReferences = nil, nil
	spec := corev1.PodSpec{NodeName: p.Spec.NodeName, HostNetwork: p.Spec.HostNetwork, Hostname: p.Spec.Hostname,
		Subdomain: p.Spec.Subdomain, RestartPolicy: p.Spec.RestartPolicy}
	ports := func(from []corev1.Container) []corev1.Container {
		var out []corev1.Container
		for i := range from {
			if len(from[i].Ports) > 0 {
				out = append(out, corev1.Container{Name: from[i].Name, Ports: from[i].Ports, RestartPolicy: from[i].RestartPolicy})
			}
		}
		return out
	}
	spec.Containers, spec.InitContainers = ports(p.Spec.Containers), ports(p.Spec.InitContainers)
	status := corev1.PodStatus{Phase: p.Status.Phase, HostIP: p.Status.HostIP, HostIPs: p.Status.HostIPs, PodIP: p.Status.PodIP, PodIPs: p.Status.PodIPs}
	for i := range p.Status.Conditions {
		if p.Status.Conditions[i].Type == corev1.PodReady {
			status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: p.Status.Conditions[i].Status}}
		}
	}
	p.Spec, p.Status = spec, status
}
