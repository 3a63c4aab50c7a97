// Package podresources tells programs on a node's machine which devices the containers of its pods have
// (https://kubernetes.io/docs/concepts/extend-kubernetes/compute-storage-net/device-plugins/#monitoring-device-plugin-resources, API v1).
//
// It owns the form of the answers. What is in them, pods and managers of devices say; it changes nothing.
package podresources

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"

	"golang.org/x/time/rate"
	"google.golang.org/grpc"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	api "k8s.io/kubelet/pkg/apis/podresources/v1"

	"coracle.dev/coracle/node/claims"
	"coracle.dev/coracle/node/devices"
	"coracle.dev/coracle/node/plugins"
)

// How often the server may be asked, as upstream has it: per second, and at once.
const (
	perSecond = 100
	atOnce    = 10
)

// Config says where the answers come from.
type Config struct {
	// Pods gives the pods of the node with their status as the node knows it.
	Pods func() []*corev1.Pod
	// Devices are those of device plugins that a container has, Allocatable all that are healthy.
	Devices     func(pod types.UID, container string) []devices.Held
	Allocatable func() []devices.Held
	// Claims are the ResourceClaims that a container uses.
	Claims func(pod *corev1.Pod, c *corev1.Container) []claims.Used
	Log    *slog.Logger
}

// Server answers. It is safe for concurrent use.
type Server struct {
	api.UnimplementedPodResourcesListerServer
	cfg Config
}

// New returns a Server.
func New(cfg Config) *Server { return &Server{cfg: cfg} }

// Run serves a socket ("pod-resources/kubelet.sock") until ctx is done.
func (s *Server) Run(ctx context.Context, socket string) {
	limit := rate.NewLimiter(perSecond, atOnce)
	server := grpc.NewServer(grpc.UnaryInterceptor(func(ctx context.Context, in any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
		if !limit.Allow() {
			return nil, errors.New("rejected by rate limit")
		}
		return next(ctx, in)
	}))
	api.RegisterPodResourcesListerServer(server, s)
	plugins.Serve(ctx, socket, server, s.cfg.Log)
}

// List tells of all pods that have not ended.
func (s *Server) List(context.Context, *api.ListPodResourcesRequest) (*api.ListPodResourcesResponse, error) {
	out := &api.ListPodResourcesResponse{}
	for _, pod := range s.cfg.Pods() {
		if pod.Status.Phase != corev1.PodSucceeded && pod.Status.Phase != corev1.PodFailed {
			out.PodResources = append(out.PodResources, s.of(pod))
		}
	}
	return out, nil
}

// Get tells of one pod.
func (s *Server) Get(_ context.Context, r *api.GetPodResourcesRequest) (*api.GetPodResourcesResponse, error) {
	pods := s.cfg.Pods()
	is := func(p *corev1.Pod) bool { return p.Namespace == r.PodNamespace && p.Name == r.PodName }
	i := slices.IndexFunc(pods, func(p *corev1.Pod) bool { return is(p) && p.DeletionTimestamp == nil })
	if i < 0 {
		i = slices.IndexFunc(pods, is)
	}
	if i < 0 {
		return nil, fmt.Errorf("pod %s in namespace %s not found", r.PodName, r.PodNamespace)
	}
	return &api.GetPodResourcesResponse{PodResources: s.of(pods[i])}, nil
}

// GetAllocatableResources tells of all devices that containers can have. No CPUs nor memory are given to containers alone here.
func (s *Server) GetAllocatableResources(context.Context, *api.AllocatableResourcesRequest) (*api.AllocatableResourcesResponse, error) {
	return &api.AllocatableResourcesResponse{Devices: wire(s.cfg.Allocatable())}, nil
}

// of tells of a pod's containers, init containers only if they stay.
func (s *Server) of(pod *corev1.Pod) *api.PodResources {
	out := &api.PodResources{Name: pod.Name, Namespace: pod.Namespace}
	for i := range pod.Spec.InitContainers {
		if c := &pod.Spec.InitContainers[i]; c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			out.Containers = append(out.Containers, s.container(pod, c))
		}
	}
	for i := range pod.Spec.Containers {
		out.Containers = append(out.Containers, s.container(pod, &pod.Spec.Containers[i]))
	}
	return out
}

func (s *Server) container(pod *corev1.Pod, c *corev1.Container) *api.ContainerResources {
	out := &api.ContainerResources{Name: c.Name, Devices: wire(s.cfg.Devices(pod.UID, c.Name))}
	for _, u := range s.cfg.Claims(pod, c) {
		d := &api.DynamicResource{ClaimName: u.Name, ClaimNamespace: u.Namespace}
		for _, one := range u.Devices {
			r := &api.ClaimResource{DriverName: one.Driver, PoolName: one.Pool, DeviceName: one.Device, ShareId: one.Share}
			for _, id := range one.CDI {
				r.CdiDevices = append(r.CdiDevices, &api.CDIDevice{Name: id})
			}
			d.ClaimResources = append(d.ClaimResources, r)
		}
		out.DynamicResources = append(out.DynamicResources, d)
	}
	return out
}

// wire names each device, one on several NUMA nodes once for each, as upstream does.
func wire(list []devices.Held) []*api.ContainerDevices {
	var out []*api.ContainerDevices
	for _, h := range list {
		if len(h.Numa) == 0 {
			out = append(out, &api.ContainerDevices{ResourceName: h.Resource, DeviceIds: []string{h.ID}})
		}
		for _, n := range h.Numa {
			out = append(out, &api.ContainerDevices{ResourceName: h.Resource, DeviceIds: []string{h.ID},
				Topology: &api.TopologyInfo{Nodes: []*api.NUMANode{{ID: n}}}})
		}
	}
	return out
}
