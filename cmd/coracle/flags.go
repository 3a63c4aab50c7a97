package main

import (
	"fmt"
	"os"
	"sort"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"sigs.k8s.io/yaml"

	"coracle.dev/coracle/cluster"
	"coracle.dev/coracle/network/overlay"
)

// addDataDir gives a command the flag that every one has.
func addDataDir(c *cobra.Command, dir *string) {
	c.Flags().StringVar(dir, "data-dir", envOr("data-dir", cluster.DefaultDataDir), "directory that holds all state")
}

// addConfig gives a command the flags of cluster.Config, and the file that may hold
// the same names.
func addConfig(c *cobra.Command, cfg *cluster.Config) {
	f := c.Flags()
	f.StringVar(&cfg.DataDir, "data-dir", cluster.DefaultDataDir, "directory that holds all state")
	f.StringVar(&cfg.Bind, "bind", "", "address to serve the API at (default all)")
	f.IntVar(&cfg.Port, "port", cluster.DefaultPort, "port to serve the API at")
	f.StringVar(&cfg.Kubeconfig, "kubeconfig", "", `file to merge the cluster's context into, "none" for none (default $KUBECONFIG or ~/.kube/config)`)
	f.String("nodes", "real", `nodes to run: "real", "simulated:N", "real,simulated:N" or "none"`)
	f.StringVar(&cfg.SimulateStages, "simulate-stages", "", "file that says what happens to simulated nodes and their pods: delays, failures, restarts (docs/simulated.md)")
	f.StringVar(&cfg.NodeName, "node-name", "", "name of the real node (default the host name)")
	f.StringSliceVar(&cfg.NodeIPs, "node-ip", nil, "address of this machine that the real node has, or one of each family with a comma between (default the source of the default route)")
	f.StringVar(&cfg.PodCIDR, "pod-cidr", "", "range of pod addresses, or one of each family: 10.42.0.0/16,fd42::/56 (default a free one of IPv4)")
	f.StringVar(&cfg.ServiceCIDR, "service-cidr", "", "range of service addresses, or one of each family in the order of the pods' (default a free one of IPv4)")
	f.IntVar(&cfg.Overlay.VNI, "vxlan-vni", 0, "network identifier of the tunnels between nodes (default one that follows from the pods' ranges)")
	f.IntVar(&cfg.Overlay.Port, "vxlan-port", overlay.DefaultPort, "UDP port of the tunnels between nodes")
	f.BoolVar(&cfg.Overlay.Direct, "direct-routes", false, "reach pods of nodes in the same subnet without a tunnel")
	f.IntVar(&cfg.Overlay.PodMTU, "pod-mtu", 0, "largest packet of pods, in bytes (default what a tunnel leaves of the node's)")
	f.BoolVar(&cfg.Services.ExternalIPs, "service-external-ips", false, "follow spec.externalIPs of Services; whoever may write a Service can then take over traffic to any address (CVE-2020-8554)")
	f.StringVar(&cfg.Services.LoadBalancerPool, "load-balancer-pool", "", "ranges that Services of type LoadBalancer get their addresses from, announced by ARP and NDP: 192.0.2.0/28,2001:db8::/124 (default they have the nodes' addresses)")
	f.StringVar(&cfg.Domain, "cluster-domain", cluster.DefaultDomain, "DNS domain of the cluster")
	f.StringSliceVar(&cfg.RegistryMirrors, "registry-mirror", nil, `pull images from here first: "HOST=URL" for one registry (docker.io=http://10.0.0.5:5000), "URL" for all; may be given again`)
	f.BoolVar(&cfg.LogDenied, "log-denied", false, "have the kernel log packets that network policies refuse, some a second for each reason (dmesg); how many there were is in /metrics either way")
	f.StringVar(&cfg.KubeletDir, "kubelet-dir", "", `directory in which device and volume drivers look for a kubelet's plugins_registry, "/var/lib/kubelet" for most (default "kubelet" in the data directory)`)
	f.DurationVar(&cfg.ShutdownGrace, "shutdown-grace-period", 0, "end the real node's pods for good when stopped, by priority and within this time, as kubelet's shutdownGracePeriod (default: they start again with the next up)")
	f.DurationVar(&cfg.ShutdownGraceCritical, "shutdown-grace-period-critical-pods", 0, "the last part of that time, for critical pods alone")
	f.StringVar(&cfg.LogLevel, "log-level", "info", "debug, info, warn or error")
	f.StringVar(&cfg.SchedulerConfig, "scheduler-config", "", "file with a KubeSchedulerConfiguration: profiles and extenders")
	f.StringVar(&cfg.EncryptionConfig, "encryption-provider-config", "", "file that says which resources are encrypted at rest, and with which keys")
	f.BoolVar(&cfg.EncryptionReload, "encryption-provider-config-automatic-reload", false, "take that file over whenever it changes, without a restart")
	f.StringVar(&cfg.Access.ConfigFile, "authentication-config", "", "file with an AuthenticationConfiguration: issuers of tokens to trust, and where anonymous requests are let in; followed")
	f.StringVar(&cfg.Access.TokenFile, "token-auth-file", "", "file with tokens and whose they are, each a line: token,user,uid,\"group1,group2\"")
	f.StringVar(&cfg.Access.TokenWebhook.File, "authentication-token-webhook-config-file", "", "kubeconfig file that names a server which judges tokens that nobody here knows")
	f.StringVar(&cfg.Access.TokenWebhook.Version, "authentication-token-webhook-version", "v1beta1", "version of the TokenReviews that it is sent: v1 or v1beta1")
	f.DurationVar(&cfg.Access.TokenWebhook.TTL, "authentication-token-webhook-cache-ttl", 2*time.Minute, "how long its answers are good")
	f.StringVar(&cfg.Access.AuthorizationFile, "authorization-config", "", "file with an AuthorizationConfiguration: what decides on requests, webhooks among it, and in which order; followed")
	f.StringSliceVar(&cfg.Access.Authorization.Modes, "authorization-mode", nil, "what decides on requests, in order: Node, RBAC, Webhook, AlwaysAllow, AlwaysDeny (default Node,RBAC)")
	f.StringVar(&cfg.Access.Authorization.WebhookFile, "authorization-webhook-config-file", "", "kubeconfig file that names the server of the mode Webhook")
	f.StringVar(&cfg.Access.Authorization.WebhookVersion, "authorization-webhook-version", "v1beta1", "version of the SubjectAccessReviews that it is sent: v1 or v1beta1")
	f.DurationVar(&cfg.Access.Authorization.AuthorizedTTL, "authorization-webhook-cache-authorized-ttl", 5*time.Minute, "how long it is good that it allows a request")
	f.DurationVar(&cfg.Access.Authorization.UnauthorizedTTL, "authorization-webhook-cache-unauthorized-ttl", 30*time.Second, "how long it is good that it does not")
	f.StringVar(&cfg.Access.OIDC.IssuerURL, "oidc-issuer-url", "", "URL of an OpenID Connect issuer to trust")
	f.StringVar(&cfg.Access.OIDC.ClientID, "oidc-client-id", "", "audience that the issuer's tokens must have")
	f.StringVar(&cfg.Access.OIDC.UsernameClaim, "oidc-username-claim", "sub", "claim that holds the name of the user")
	f.StringVar(&cfg.Access.OIDC.UsernamePrefix, "oidc-username-prefix", "", `what goes before user names, "-" for nothing (default the issuer and "#" unless the claim is email)`)
	f.StringVar(&cfg.Access.OIDC.GroupsClaim, "oidc-groups-claim", "", "claim that holds the user's groups")
	f.StringVar(&cfg.Access.OIDC.GroupsPrefix, "oidc-groups-prefix", "", "what goes before group names")
	f.StringVar(&cfg.Access.OIDC.CAFile, "oidc-ca-file", "", "file with the certificates that the issuer is to be believed by (default the system's)")
	f.StringToStringVar(&cfg.Access.OIDC.RequiredClaims, "oidc-required-claim", nil, "claim and value that tokens must have (claim=value)")
	f.StringVar(&cfg.Audit.PolicyFile, "audit-policy-file", "", "file with the audit policy")
	f.StringVar(&cfg.Audit.LogPath, "audit-log-path", "", `file to write audit events to, "-" for standard output`)
	f.IntVar(&cfg.Audit.LogMaxSize, "audit-log-maxsize", 100, "size in megabytes at which the audit log is put aside")
	f.IntVar(&cfg.Audit.LogMaxBackup, "audit-log-maxbackup", 0, "how many old audit logs are kept (default all)")
	f.IntVar(&cfg.Audit.LogMaxAge, "audit-log-maxage", 0, "days for which old audit logs are kept (default for ever)")
	f.BoolVar(&cfg.Audit.LogCompress, "audit-log-compress", false, "compress old audit logs")
	f.StringVar(&cfg.Audit.LogFormat, "audit-log-format", "json", "json or legacy")
	f.StringVar(&cfg.Audit.LogMode, "audit-log-mode", "blocking", "blocking, or blocking-strict to refuse requests that cannot be recorded")
	f.StringVar(&cfg.Audit.WebhookConfig, "audit-webhook-config-file", "", "kubeconfig file that names the server to send audit events to")
	f.IntVar(&cfg.Audit.WebhookBatch.BufferSize, "audit-webhook-batch-buffer-size", 10000, "audit events that wait to be sent at most")
	f.IntVar(&cfg.Audit.WebhookBatch.MaxSize, "audit-webhook-batch-max-size", 400, "audit events that are sent at once at most")
	f.DurationVar(&cfg.Audit.WebhookBatch.MaxWait, "audit-webhook-batch-max-wait", 30*time.Second, "how long audit events wait to be sent with others")
	f.DurationVar(&cfg.Audit.WebhookBatch.InitialDelay, "audit-webhook-initial-backoff", 10*time.Second, "how long to wait before audit events are sent again that were not taken")
	f.String("config", "", "YAML file with the names of these flags as keys")
}

// complete reads environment and file for what was not said on the command line, in
// this order of weight: flag, environment (CORACLE_DATA_DIR for --data-dir), file,
// default. An unknown key of the file is an error.
func complete(f *pflag.FlagSet, cfg *cluster.Config) error {
	if err := fromEnvironment(f); err != nil {
		return err
	}
	said := map[string]bool{}
	f.Visit(func(flag *pflag.Flag) { said[flag.Name] = true })
	if path, _ := f.GetString("config"); path != "" {
		if err := readConfig(path, f, said); err != nil {
			return err
		}
	}
	nodes, err := f.GetString("nodes")
	if err != nil {
		return err
	}
	if cfg.Nodes, err = cluster.ParseNodes(nodes); err != nil {
		return err
	}
	return cfg.Complete()
}

// fromEnvironment sets the flags that were not given and that the environment has.
func fromEnvironment(f *pflag.FlagSet) error {
	said := map[string]bool{}
	f.Visit(func(flag *pflag.Flag) { said[flag.Name] = true })
	var err error
	f.VisitAll(func(flag *pflag.Flag) {
		if value := os.Getenv(envName(flag.Name)); value != "" && !said[flag.Name] && flag.Name != "help" && err == nil {
			if serr := f.Set(flag.Name, value); serr != nil {
				err = fmt.Errorf("environment %s: %w", envName(flag.Name), serr)
			}
		}
	})
	return err
}

func readConfig(path string, f *pflag.FlagSet, said map[string]bool) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("config: %w", err)
	}
	var values map[string]any
	if err := yaml.UnmarshalStrict(data, &values); err != nil {
		return fmt.Errorf("config %s: %w", path, err)
	}
	for name, value := range values {
		flag := f.Lookup(name)
		if flag == nil || name == "config" || name == "help" {
			return fmt.Errorf("config %s: unknown key %q; known are %s", path, name, strings.Join(names(f), ", "))
		}
		if said[name] {
			continue
		}
		list, ok := value.([]any)
		if !ok {
			list = []any{value}
		}
		for _, one := range list {
			if err := f.Set(name, fmt.Sprint(one)); err != nil {
				return fmt.Errorf("config %s: %s: %w", path, name, err)
			}
		}
	}
	return nil
}

func names(f *pflag.FlagSet) []string {
	var all []string
	f.VisitAll(func(flag *pflag.Flag) {
		if flag.Name != "config" && flag.Name != "help" && !flag.Hidden {
			all = append(all, flag.Name)
		}
	})
	sort.Strings(all)
	return all
}

func envName(flag string) string {
	return "CORACLE_" + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

func envOr(flag, otherwise string) string {
	if v := os.Getenv(envName(flag)); v != "" {
		return v
	}
	return otherwise
}
