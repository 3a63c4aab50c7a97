package node

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"coracle.dev/coracle/container"
)

// Limits of resolv.conf as upstream keeps them.
const (
	maxNameservers    = 3
	maxSearches       = 32
	maxSearchesLength = 2048
)

// hostResolver is the resolv.conf that pods with the host's DNS get.
func hostResolver(path string) (container.DNS, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return container.DNS{}, err
	}
	return parseResolver(data), nil
}

// parseResolver reads resolv.conf(5). The last search or domain line counts.
func parseResolver(data []byte) container.DNS {
	var out container.DNS
	lines := bufio.NewScanner(bytes.NewReader(data))
	for lines.Scan() {
		line, _, _ := strings.Cut(lines.Text(), "#")
		line, _, _ = strings.Cut(line, ";")
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		switch f[0] {
		case "nameserver":
			out.Servers = append(out.Servers, f[1])
		case "search", "domain":
			out.Searches = f[1:]
		case "options":
			out.Options = f[1:]
		}
	}
	return out
}

// podResolver gives a pod's resolv.conf by dnsPolicy and dnsConfig
// (https://kubernetes.io/docs/concepts/services-networking/dns-pod-service/). warn, if not
// empty, is the message of a MissingClusterDNS event.
func podResolver(pod *corev1.Pod, host container.DNS, servers []string, domain string) (out container.DNS, warn string) {
	policy := pod.Spec.DNSPolicy
	if policy == corev1.DNSClusterFirst && pod.Spec.HostNetwork {
		policy = corev1.DNSDefault
	}
	if policy == corev1.DNSClusterFirstWithHostNet {
		policy = corev1.DNSClusterFirst
	}
	if policy == "" {
		policy = corev1.DNSClusterFirst
	}
	if policy == corev1.DNSClusterFirst && len(servers) == 0 {
		policy = corev1.DNSDefault
		warn = fmt.Sprintf("pod: %q. kubelet does not have ClusterDNS IP configured and cannot create Pod using %q policy. Falling back to %q policy.",
			podFullName(pod), pod.Spec.DNSPolicy, corev1.DNSDefault)
	}
	switch policy {
	case corev1.DNSDefault:
		out = host
	case corev1.DNSClusterFirst:
		out.Servers = servers
		if domain != "" {
			out.Searches = []string{pod.Namespace + ".svc." + domain, "svc." + domain, domain}
		}
		out.Searches = unique(append(out.Searches, host.Searches...))
		out.Options = []string{"ndots:5"}
	}
	if c := pod.Spec.DNSConfig; c != nil {
		out.Servers = unique(append(append([]string{}, out.Servers...), c.Nameservers...))
		out.Searches = unique(append(append([]string{}, out.Searches...), c.Searches...))
		out.Options = mergeOptions(out.Options, c.Options)
	}
	out.Servers = out.Servers[:min(len(out.Servers), maxNameservers)]
	out.Searches = limitSearches(out.Searches)
	return out, warn
}

func unique(list []string) []string {
	seen := make(map[string]bool, len(list))
	out := list[:0:0]
	for _, s := range list {
		if !seen[s] {
			seen[s] = true
			out = append(out, s)
		}
	}
	return out
}

// mergeOptions lays the pod's options over others of the same name.
func mergeOptions(base []string, over []corev1.PodDNSConfigOption) []string {
	set := map[string]string{}
	var order []string
	put := func(name, value string) {
		if _, ok := set[name]; !ok {
			order = append(order, name)
		}
		set[name] = value
	}
	for _, o := range base {
		name, value, _ := strings.Cut(o, ":")
		put(name, value)
	}
	for _, o := range over {
		value := ""
		if o.Value != nil {
			value = *o.Value
		}
		put(o.Name, value)
	}
	out := make([]string, 0, len(order))
	for _, name := range order {
		if set[name] != "" {
			name += ":" + set[name]
		}
		out = append(out, name)
	}
	return out
}

func limitSearches(list []string) []string {
	length := 0
	for i, s := range list {
		length += len(s) + 1
		if i == maxSearches || length > maxSearchesLength+1 {
			return list[:i]
		}
	}
	return list
}

// hostnames gives a pod's host name, its domain ("" without a subdomain), and the name that
// the kernel is told.
func hostnames(pod *corev1.Pod, clusterDomain string) (host, domain, kernel string, err error) {
	host = pod.Name
	if o := pod.Spec.HostnameOverride; o != nil && *o != "" {
		return *o, "", *o, nil
	}
	if pod.Spec.Hostname != "" {
		host = pod.Spec.Hostname
	}
	if len(host) > 63 {
		host = strings.TrimRight(host[:63], "-.")
	}
	if pod.Spec.Subdomain != "" {
		domain = fmt.Sprintf("%s.%s.svc.%s", pod.Spec.Subdomain, pod.Namespace, clusterDomain)
	}
	kernel = host
	if isTrue(pod.Spec.SetHostnameAsFQDN) && domain != "" {
		kernel = host + "." + domain
		if len(kernel) > 64 {
			return "", "", "", fmt.Errorf("failed to construct FQDN from pod hostname and cluster domain, FQDN %s is too long (64 characters is the max, %d characters requested)", kernel, len(kernel))
		}
	}
	return host, domain, kernel, nil
}

// hostsFile is the text of /etc/hosts. hostFile is the node's own, for pods in its network.
func hostsFile(pod *corev1.Pod, podIPs []string, host, domain string, hostFile []byte) []byte {
	var out bytes.Buffer
	if pod.Spec.HostNetwork {
		out.WriteString("# Kubernetes-managed hosts file (host network).\n")
		out.Write(hostFile)
	} else {
		out.WriteString("# Kubernetes-managed hosts file.\n" +
			"127.0.0.1\tlocalhost\n" +
			"::1\tlocalhost ip6-localhost ip6-loopback\n" +
			"fe00::0\tip6-localnet\n" +
			"fe00::0\tip6-mcastprefix\n" +
			"fe00::1\tip6-allnodes\n" +
			"fe00::2\tip6-allrouters\n")
		for _, ip := range podIPs {
			if domain != "" {
				fmt.Fprintf(&out, "%s\t%s.%s\t%s\n", ip, host, domain, host)
			} else {
				fmt.Fprintf(&out, "%s\t%s\n", ip, host)
			}
		}
	}
	if len(pod.Spec.HostAliases) > 0 {
		out.WriteString("\n# Entries added by HostAliases.\n")
		for _, a := range pod.Spec.HostAliases {
			fmt.Fprintf(&out, "%s\t%s\n", a.IP, strings.Join(a.Hostnames, "\t"))
		}
	}
	return out.Bytes()
}
