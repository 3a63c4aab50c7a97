package scripts

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"google.golang.org/grpc"
	healthpb "k8s.io/kubelet/pkg/apis/dra-health/v1"
	drapb "k8s.io/kubelet/pkg/apis/dra/v1"
	registerapi "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

// draDriver is a DRA driver whose devices are variables in the environment of containers. What it is asked goes to its log.
type draDriver struct {
	drapb.UnimplementedDRAPluginServer
	registerapi.UnimplementedRegistrationServer
	healthpb.UnimplementedDRAResourceHealthServer
	name, log, health string
}

// serveDriver is the command dradriver NAME: it serves a DRA driver to the node of the cluster until the script ends. Every claim gets the CDI
// device NAME/class=CLAIMUID, which sets DEVICE_OF to the claim's name
// and has a hook that notes it. What it did goes to NAME.log.
// The health of the device is what NAME.health says (healthy or unhealthy, and a message).
func serveDriver(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: dradriver NAME")
	}
	d := &draDriver{name: args[0], log: ts.MkAbs(args[0] + ".log"), health: ts.MkAbs(args[0] + ".health")}
	dir := filepath.Join(ts.Getenv("CORACLE_DATA_DIR"), "kubelet", "plugins_registry")
	ts.Check(os.MkdirAll(dir, 0o750))
	ts.Check(os.WriteFile(d.log, nil, 0o600))
	l, err := net.Listen("unix", filepath.Join(dir, args[0]+".sock"))
	ts.Check(err)
	s := grpc.NewServer()
	drapb.RegisterDRAPluginServer(s, d)
	registerapi.RegisterRegistrationServer(s, d)
	healthpb.RegisterDRAResourceHealthServer(s, d)
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Serve(l) }()
	ts.Defer(func() { s.Stop(); <-done })
}

// GetInfo says what the driver is.
func (d *draDriver) GetInfo(context.Context, *registerapi.InfoRequest) (*registerapi.PluginInfo, error) {
	return &registerapi.PluginInfo{Type: registerapi.DRAPlugin, Name: d.name, SupportedVersions: []string{drapb.DRAPluginService, healthpb.DRAResourceHealthService}}, nil
}

// NotifyRegistrationStatus takes note of whether it was taken.
func (d *draDriver) NotifyRegistrationStatus(_ context.Context, s *registerapi.RegistrationStatus) (*registerapi.RegistrationStatusResponse, error) {
	if s.PluginRegistered {
		d.note("registered")
	} else {
		d.note("refused: " + s.Error)
	}
	return &registerapi.RegistrationStatusResponse{}, nil
}

// NodeWatchResources tells what the file of health says, whenever it changes.
func (d *draDriver) NodeWatchResources(_ *healthpb.NodeWatchResourcesRequest, s grpc.ServerStreamingServer[healthpb.NodeWatchResourcesResponse]) error {
	said := ""
	for {
		data, _ := os.ReadFile(d.health)
		if text := strings.TrimSpace(string(data)); text != said {
			said = text
			state, message, _ := strings.Cut(text, " ")
			one := &healthpb.DeviceHealth{Device: &healthpb.DeviceIdentifier{PoolName: "pool", DeviceName: "any"}, Message: message,
				Health: healthpb.HealthStatus_HEALTHY, HealthCheckTimeoutSeconds: 3600}
			if state == "unhealthy" {
				one.Health = healthpb.HealthStatus_UNHEALTHY
			}
			if err := s.Send(&healthpb.NodeWatchResourcesResponse{Devices: []*healthpb.DeviceHealth{one}}); err != nil {
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

// NodePrepareResources writes a CDI specification for each claim.
func (d *draDriver) NodePrepareResources(_ context.Context, r *drapb.NodePrepareResourcesRequest) (*drapb.NodePrepareResourcesResponse, error) {
	out := &drapb.NodePrepareResourcesResponse{Claims: map[string]*drapb.NodePrepareResourceResponse{}}
	for _, c := range r.Claims {
		d.note("prepare " + c.Namespace + "/" + c.Name)
		spec := `{"cdiVersion": "0.6.0", "kind": "` + d.name + `/class", "devices": [{"name": "` + c.Uid + `", "containerEdits": {
			"env": ["DEVICE_OF=` + c.Name + `"], "deviceNodes": [{"path": "/dev/of-claim", "hostPath": "/dev/zero"}],
			"hooks": [{"hookName": "createRuntime", "path": "/bin/sh", "args": ["sh", "-c", "echo hook of ` + c.Name + ` >> ` + d.log + `"]}]}}]}`
		if err := os.MkdirAll("/var/run/cdi", 0o755); err != nil {
			return nil, err
		}
		if err := os.WriteFile(d.spec(c.Uid), []byte(spec), 0o644); err != nil {
			return nil, err
		}
		out.Claims[c.Uid] = &drapb.NodePrepareResourceResponse{Devices: []*drapb.Device{
			{PoolName: "pool", DeviceName: "any", CdiDeviceIds: []string{d.name + "/class=" + c.Uid}}}}
	}
	return out, nil
}

// NodeUnprepareResources removes it.
func (d *draDriver) NodeUnprepareResources(_ context.Context, r *drapb.NodeUnprepareResourcesRequest) (*drapb.NodeUnprepareResourcesResponse, error) {
	out := &drapb.NodeUnprepareResourcesResponse{Claims: map[string]*drapb.NodeUnprepareResourceResponse{}}
	for _, c := range r.Claims {
		d.note("unprepare " + c.Namespace + "/" + c.Name)
		_ = os.Remove(d.spec(c.Uid))
		out.Claims[c.Uid] = &drapb.NodeUnprepareResourceResponse{}
	}
	return out, nil
}

func (d *draDriver) spec(uid string) string {
	return filepath.Join("/var/run/cdi", strings.ReplaceAll(d.name, "/", "_")+"-"+uid+".json")
}

func (d *draDriver) note(line string) {
	f, err := os.OpenFile(d.log, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return // the script is over
	}
	defer f.Close()
	_, _ = f.WriteString(line + "\n")
}
