package podresources

import (
	"context"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	api "k8s.io/kubelet/pkg/apis/podresources/v1"

	"coracle.dev/coracle/node/claims"
	"coracle.dev/coracle/node/devices"
	"coracle.dev/coracle/node/plugins"
)

func TestServer(t *testing.T) {
	always, share := corev1.ContainerRestartPolicyAlways, "s"
	pods := []*corev1.Pod{
		{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "a", UID: "1"}, Spec: corev1.PodSpec{
			InitContainers: []corev1.Container{{Name: "init"}, {Name: "sidecar", RestartPolicy: &always}}, Containers: []corev1.Container{{Name: "main"}}}},
		{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "ended", UID: "2"}, Status: corev1.PodStatus{Phase: corev1.PodSucceeded}},
	}
	s := New(Config{
		Pods: func() []*corev1.Pod { return pods },
		Devices: func(pod types.UID, container string) []devices.Held {
			if pod == "1" && container == "main" {
				return []devices.Held{{Resource: "example.com/gpu", ID: "x", Numa: []int64{0, 1}}, {Resource: "example.com/gpu", ID: "y"}}
			}
			return nil
		},
		Allocatable: func() []devices.Held { return []devices.Held{{Resource: "example.com/gpu", ID: "x"}} },
		Claims: func(pod *corev1.Pod, c *corev1.Container) []claims.Used {
			if c.Name != "sidecar" {
				return nil
			}
			return []claims.Used{{Namespace: "default", Name: "c", Devices: []claims.UsedDevice{{Driver: "d", Pool: "p", Device: "v", CDI: []string{"k=v"}, Share: &share}}}}
		},
		Log: slog.New(slog.DiscardHandler),
	})
	dir, err := os.MkdirTemp("", "pr") // short enough for a socket
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	socket := filepath.Join(dir, "pod-resources", "kubelet.sock")
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); s.Run(ctx, socket) }()
	defer func() { cancel(); <-done }()
	for deadline := time.Now().Add(30 * time.Second); ; {
		if c, err := net.Dial("unix", socket); err == nil {
			c.Close()
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("no socket")
		}
		time.Sleep(time.Millisecond)
	}
	conn, err := plugins.Dial(socket)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	client := api.NewPodResourcesListerClient(conn)
	const want = `{"name": "a", "namespace": "default", "containers": [
		{"name": "sidecar", "dynamicResources": [{"claimName": "c", "claimNamespace": "default", "claimResources": [
			{"cdiDevices": [{"name": "k=v"}], "driverName": "d", "poolName": "p", "deviceName": "v", "shareId": "s"}]}]},
		{"name": "main", "devices": [
			{"resourceName": "example.com/gpu", "deviceIds": ["x"], "topology": {"nodes": [{"ID": "0"}]}},
			{"resourceName": "example.com/gpu", "deviceIds": ["x"], "topology": {"nodes": [{"ID": "1"}]}},
			{"resourceName": "example.com/gpu", "deviceIds": ["y"]}]}]}`
	same := func(what string, got, want proto.Message, text string) {
		t.Helper()
		if err := protojson.Unmarshal([]byte(text), want); err != nil {
			t.Fatal(err)
		}
		if !proto.Equal(got, want) {
			t.Errorf("%s: %s", what, protojson.Format(got))
		}
	}
	list, err := client.List(ctx, &api.ListPodResourcesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	same("list", list, &api.ListPodResourcesResponse{}, `{"podResources": [`+want+`]}`)
	one, err := client.Get(ctx, &api.GetPodResourcesRequest{PodNamespace: "default", PodName: "a"})
	if err != nil {
		t.Fatal(err)
	}
	same("get", one, &api.GetPodResourcesResponse{}, `{"podResources": `+want+`}`)
	if _, err := client.Get(ctx, &api.GetPodResourcesRequest{PodNamespace: "default", PodName: "b"}); err == nil || !strings.Contains(err.Error(), "pod b in namespace default not found") {
		t.Errorf("get of none: %v", err)
	}
	all, err := client.GetAllocatableResources(ctx, &api.AllocatableResourcesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	same("allocatable", all, &api.AllocatableResourcesResponse{}, `{"devices": [{"resourceName": "example.com/gpu", "deviceIds": ["x"]}]}`)
	for i := 0; ; i++ { // who asks without pause is held off
		if _, err := client.List(ctx, &api.ListPodResourcesRequest{}); err != nil {
			if !strings.Contains(err.Error(), "rejected by rate limit") {
				t.Error(err)
			}
			break
		}
		if i == 100_000 {
			t.Fatal("no limit")
		}
	}
}
