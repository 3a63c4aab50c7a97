package scripts

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	pluginapi "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"
	resourcesapi "k8s.io/kubelet/pkg/apis/podresources/v1"
)

// devicePlugin is a device plugin whose devices are /dev/zero under other names, and variables. It offers what a file lists.
type devicePlugin struct {
	pluginapi.UnimplementedDevicePluginServer
	list string
	stop chan struct{}
}

// servePlugin is the command deviceplugin RESOURCE FILE: it serves a device plugin to the node of the cluster until the script ends, and again
// whenever the node's socket is made anew. FILE has the devices, one a line, "!" behind those that are unhealthy; it is read again when it changes. A
// container has the variable DEVICES and the device /dev/given.
func servePlugin(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: deviceplugin RESOURCE FILE")
	}
	p := &devicePlugin{list: ts.MkAbs(args[1]), stop: make(chan struct{})}
	dir := filepath.Join(ts.Getenv("CORACLE_DATA_DIR"), "kubelet", "device-plugins")
	name := strings.ReplaceAll(args[0], "/", "_") + ".sock"
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			p.serve(dir, name, args[0])
			select {
			case <-p.stop:
				return
			case <-time.After(50 * time.Millisecond):
			}
		}
	}()
	ts.Defer(func() { close(p.stop); <-done })
}

// serve serves the plugin until its socket or the node's is gone.
func (p *devicePlugin) serve(dir, name, resource string) {
	kubelet := filepath.Join(dir, "kubelet.sock")
	before, err := os.Stat(kubelet)
	if err != nil {
		return // the node is not up
	}
	socket := filepath.Join(dir, name)
	_ = os.Remove(socket)
	l, err := net.Listen("unix", socket)
	if err != nil {
		return
	}
	server := grpc.NewServer()
	pluginapi.RegisterDevicePluginServer(server, p)
	ended := make(chan struct{})
	go func() { defer close(ended); _ = server.Serve(l) }()
	defer func() { server.Stop(); <-ended }()
	conn, err := grpc.NewClient("unix://"+kubelet, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if _, err := pluginapi.NewRegistrationClient(conn).Register(ctx, &pluginapi.RegisterRequest{Version: pluginapi.Version, Endpoint: name, ResourceName: resource}); err != nil {
		return
	}
	for {
		now, err := os.Stat(kubelet)
		if err != nil || !os.SameFile(now, before) || !now.ModTime().Equal(before.ModTime()) {
			return
		}
		select {
		case <-p.stop:
			return
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// GetDevicePluginOptions says that there is nothing special.
func (p *devicePlugin) GetDevicePluginOptions(context.Context, *pluginapi.Empty) (*pluginapi.DevicePluginOptions, error) {
	return &pluginapi.DevicePluginOptions{}, nil
}

// ListAndWatch offers what the file lists.
func (p *devicePlugin) ListAndWatch(_ *pluginapi.Empty, s grpc.ServerStreamingServer[pluginapi.ListAndWatchResponse]) error {
	said := "none yet"
	for {
		data, _ := os.ReadFile(p.list)
		if text := string(data); text != said {
			said = text
			r := &pluginapi.ListAndWatchResponse{}
			for _, id := range strings.Fields(text) {
				d := &pluginapi.Device{ID: strings.TrimSuffix(id, "!"), Health: pluginapi.Healthy}
				if strings.HasSuffix(id, "!") {
					d.Health = pluginapi.Unhealthy
				}
				r.Devices = append(r.Devices, d)
			}
			if err := s.Send(r); err != nil {
				return err
			}
		}
		select {
		case <-s.Context().Done():
			return nil
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// Allocate gives a container its devices.
func (p *devicePlugin) Allocate(_ context.Context, r *pluginapi.AllocateRequest) (*pluginapi.AllocateResponse, error) {
	out := &pluginapi.AllocateResponse{}
	for _, c := range r.ContainerRequests {
		out.ContainerResponses = append(out.ContainerResponses, &pluginapi.ContainerAllocateResponse{
			Envs:    map[string]string{"DEVICES": strings.Join(c.DevicesIds, ",")},
			Devices: []*pluginapi.DeviceSpec{{HostPath: "/dev/zero", ContainerPath: "/dev/given", Permissions: "rw"}},
			Mounts:  []*pluginapi.Mount{{HostPath: "/etc/hostname", ContainerPath: "/given/name", ReadOnly: true}},
		})
	}
	return out, nil
}

// podResources is the command podresources [NAMESPACE NAME|allocatable]: it prints what the node's PodResources socket says of all pods, of one, or of the
// devices that there are, as JSON on one line.
func podResources(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) > 2 {
		ts.Fatalf("usage: podresources [NAMESPACE NAME|allocatable]")
	}
	conn, err := grpc.NewClient("unix://"+filepath.Join(ts.Getenv("CORACLE_DATA_DIR"), "kubelet", "pod-resources", "kubelet.sock"),
		grpc.WithTransportCredentials(insecure.NewCredentials()))
	ts.Check(err)
	defer conn.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	client := resourcesapi.NewPodResourcesListerClient(conn)
	var out proto.Message
	switch len(args) {
	case 0:
		out, err = client.List(ctx, &resourcesapi.ListPodResourcesRequest{}, grpc.WaitForReady(true))
	case 1:
		out, err = client.GetAllocatableResources(ctx, &resourcesapi.AllocatableResourcesRequest{}, grpc.WaitForReady(true))
	default:
		out, err = client.Get(ctx, &resourcesapi.GetPodResourcesRequest{PodNamespace: args[0], PodName: args[1]}, grpc.WaitForReady(true))
	}
	if (err != nil) != neg {
		ts.Fatalf("podresources: %v", err)
	}
	if err != nil {
		fmt.Fprintln(ts.Stderr(), err)
		return
	}
	data, err := protojson.Marshal(out)
	ts.Check(err)
	var compact bytes.Buffer // protojson adds blanks at random
	ts.Check(json.Compact(&compact, data))
	fmt.Fprintln(ts.Stdout(), compact.String())
}
