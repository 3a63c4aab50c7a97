package main

import (
	"github.com/spf13/cobra"

	"coracle.dev/coracle/cluster"
)

// newAgent is a node without a control plane.
func newAgent() *cobra.Command {
	cfg := cluster.Config{Join: &cluster.Join{}, Nodes: cluster.Nodes{Real: true}}
	var detach, keep bool
	c := &cobra.Command{
		Use:   "agent",
		Short: "Join this machine to a control plane elsewhere as a node",
		Long: `Join this machine to a control plane elsewhere as a node. The first start needs --server, --token and
--ca-hash, which "coracle token create --print-join-command" on the control plane prints; later ones need
nothing. Stopping it ends the containers of the node, --keep leaves them running.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := fromEnvironment(cmd.Flags()); err != nil {
				return err
			}
			if err := cfg.Complete(); err != nil {
				return err
			}
			if running(cmd, cfg.DataDir) {
				return nil
			}
			if detach {
				return upDetached(cmd.Context(), cmd.OutOrStdout(), cfg.DataDir)
			}
			return upHere(cmd.Context(), cmd.OutOrStdout(), cfg, keep)
		},
	}
	f := c.Flags()
	f.StringVar(&cfg.DataDir, "data-dir", cluster.DefaultDataDir, "directory that holds all state")
	f.StringVar(&cfg.Join.Server, "server", "", "URL of the control plane (default the one that was joined before)")
	f.StringVar(&cfg.Join.Token, "token", "", "bootstrap token that the control plane gave")
	f.StringVar(&cfg.Join.CAHash, "ca-hash", "", `hash of the control plane's authority, "sha256:..."`)
	f.IntVar(&cfg.Join.APIPort, "node-port", cluster.DefaultNodePort, "port at which the API server reaches this node")
	f.StringVar(&cfg.NodeName, "node-name", "", "name of the node (default the host name)")
	f.StringSliceVar(&cfg.RegistryMirrors, "registry-mirror", nil, `pull images from here first: "HOST=URL" for one registry, "URL" for all; may be given again`)
	f.StringSliceVar(&cfg.NodeIPs, "node-ip", nil, "address of this machine that the node has, or one of each family with a comma between (default the source of the default route)")
	f.BoolVar(&cfg.Services.ExternalIPs, "service-external-ips", false, "follow spec.externalIPs of Services on this node, as on the control plane's (CVE-2020-8554)")
	f.BoolVar(&cfg.LogDenied, "log-denied", false, "have the kernel log packets that network policies refuse, some a second for each reason (dmesg)")
	f.StringVar(&cfg.KubeletDir, "kubelet-dir", "", `directory in which device and volume drivers look for a kubelet's plugins_registry, "/var/lib/kubelet" for most (default "kubelet" in the data directory)`)
	f.StringVar(&cfg.LogLevel, "log-level", "info", "debug, info, warn or error")
	f.BoolVarP(&detach, "detach", "d", false, "return when the node is ready and leave it running")
	f.BoolVar(&keep, "keep", false, "leave containers running when stopped")
	return c
}
