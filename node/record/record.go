// Package record says how a pod is written down in the container runtime: the labels of
// its sandbox and containers, and where its logs lie. The node agent writes it; whoever
// looks for a pod's containers (the agent after a restart, the kubelet API) reads
// it. It holds no state and touches nothing.
package record

import (
	"path/filepath"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// The labels of sandboxes and containers. The first four are those that every
// Kubernetes runtime uses.
const (
	PodName       = "io.kubernetes.pod.name"
	PodNamespace  = "io.kubernetes.pod.namespace"
	PodUID        = "io.kubernetes.pod.uid"
	ContainerName = "io.kubernetes.container.name"
	// ContainerRole is one of the Role values.
	ContainerRole = "coracle.dev/role"
	// Attempt counts the instances of a container of a pod (or its sandboxes), from 0.
	Attempt = "coracle.dev/attempt"
	// Image is the image as the pod's specification names it.
	Image = "coracle.dev/image"
	// Grace is the pod's termination grace period in seconds, for the time when
	// the pod itself is no longer known.
	Grace = "coracle.dev/grace"
	// MessagePath is the host file of the termination message.
	MessagePath = "coracle.dev/message-path"
	// Owner names the agent, so that two of them do not touch each other's pods.
	Owner = "coracle.dev/node"
)

// Role is what a container is in its pod.
type Role string

// The roles.
const (
	RoleInit      Role = "init"
	RoleSidecar   Role = "sidecar"
	RoleMain      Role = "main"
	RoleEphemeral Role = "ephemeral"
)

// ID is which instance of which container of which pod something is.
type ID struct {
	Namespace, Pod string
	UID            types.UID
	// Container and Role are empty for a sandbox.
	Container string
	Role      Role
	Attempt   int
}

// Of reads an ID from labels; ok is false if they are not those of a pod.
func Of(labels map[string]string) (id ID, ok bool) {
	id = ID{
		Namespace: labels[PodNamespace], Pod: labels[PodName], UID: types.UID(labels[PodUID]),
		Container: labels[ContainerName], Role: Role(labels[ContainerRole]),
	}
	id.Attempt, _ = strconv.Atoi(labels[Attempt])
	return id, id.UID != ""
}

// Labels writes an ID as labels.
func (id ID) Labels() map[string]string {
	l := map[string]string{
		PodName: id.Pod, PodNamespace: id.Namespace, PodUID: string(id.UID),
		Attempt: strconv.Itoa(id.Attempt),
	}
	if id.Container != "" {
		l[ContainerName], l[ContainerRole] = id.Container, string(id.Role)
	}
	return l
}

// SandboxLabels are those of a pod's sandbox.
func SandboxLabels(pod *corev1.Pod, attempt int) map[string]string {
	return ID{Namespace: pod.Namespace, Pod: pod.Name, UID: pod.UID, Attempt: attempt}.Labels()
}

// LogDir is the directory of a pod's logs below root, named as upstream names those in /var/log/pods.
func LogDir(root, namespace, name string, uid types.UID) string {
	return filepath.Join(root, namespace+"_"+name+"_"+string(uid))
}

// LogPath is the log of one instance of a container, relative to the pod's LogDir.
func LogPath(container string, attempt int) string {
	return filepath.Join(container, strconv.Itoa(attempt)+".log")
}
