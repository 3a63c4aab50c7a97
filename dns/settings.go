package dns

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sort"
	"strconv"
	"strings"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sync/singleflight"

	"coracle.dev/coracle/dns/corefile"
)

// DefaultCorefile is the configuration where kube-system/coredns has none, with the cluster's domain in the place of %s.
const DefaultCorefile = `.:53 {
    errors
    autopath @kubernetes
    kubernetes %s in-addr.arpa ip6.arpa {
        pods insecure
        fallthrough in-addr.arpa ip6.arpa
        ttl 30
    }
    import /etc/coredns/custom/*.override
    forward . /etc/resolv.conf
    cache 300
    loop
}
import /etc/coredns/custom/*.server
`

// settings are a compiled configuration, and what its upstreams said. The configuration is immutable, and all is swapped as a whole: what
// an upstream of the last one still says is nothing to the next.
type settings struct {
	blocks  []*block // those of the longest zones first
	cache   cache
	flights singleflight.Group // of questions to upstreams
	// versions are those of the config maps that it was read from.
	versions [2]string
	// notes are about what stands in the configuration and has no meaning here.
	notes []string
}

// block is what is done with the names of some zones.
type block struct {
	zone       string // one of the block's, "." for all
	rewrites   []*rewrite
	hosts      []*hosts
	kubernetes *kubernetes
	autopath   bool
	forwards   []*forwarder
	cache      cachePolicy
	log        bool
	errors     bool
}

// kubernetes says how the cluster's own names are answered.
type kubernetes struct {
	zones       []zone   // the cluster's domains
	reverse     []string // the zones of addresses that are answered here, and of other names without meaning
	pods        podsMode
	ttl         uint32
	fallthru    through
	podNames    bool // endpoint_pod_names
	only        map[string]bool
	ignoreEmpty bool
}

// podsMode is how names of pods (a-b-c-d.ns.pod) are answered.
type podsMode uint8

const (
	podsDisabled podsMode = iota
	podsInsecure          // from the name alone
	podsVerified          // only if there is such a pod
)

// through are the zones whose names go on to the next directive when one does not know them; nil for none.
type through []string

func (t through) has(name string) bool {
	return slices.ContainsFunc(t, func(zone string) bool { return dns.IsSubDomain(zone, name) })
}

// find gives the block of a name, nil if there is none.
func (s *settings) find(name string) *block {
	for _, b := range s.blocks {
		if dns.IsSubDomain(b.zone, name) {
			return b
		}
	}
	return nil
}

// ignored are directives that mean nothing here, or that nothing has to be configured for.
var ignored = map[string]string{
	"ready": "", "health": "", "reload": "", "loop": "", "loadbalance": "", "prometheus": "", "lameduck": "", "bufsize": "", "minimal": "",
	"cancel": "", "nsid": "", "trace": "", "pprof": "", "debug": "", "metadata": "", "any": "", "root": "", "timeouts": "", "multisocket": "",
	"bind": "the address is that of the Service kube-dns",
}

// compiler turns lines into settings.
type compiler struct {
	env
	out settings
}

// env is what a configuration refers to beside its text.
type env struct {
	domain    string // of the cluster
	upstreams []netip.AddrPort
	// file gives the content of a file that the configuration names, which is a key of a config map.
	file func(name string) (string, bool)
}

// compile reads a configuration.
func compile(text corefile.Text, imports corefile.Import, e env) (*settings, error) {
	lines, err := corefile.Parse(text, imports)
	if err != nil {
		return nil, err
	}
	c := &compiler{env: e}
	for i := range lines {
		if err := c.server(&lines[i]); err != nil {
			return nil, err
		}
	}
	if len(c.out.blocks) == 0 {
		return nil, errors.New("the configuration has no server block")
	}
	sort.SliceStable(c.out.blocks, func(i, j int) bool {
		return dns.CountLabel(c.out.blocks[i].zone) > dns.CountLabel(c.out.blocks[j].zone)
	})
	return &c.out, nil
}

// server compiles a server block.
func (c *compiler) server(l *corefile.Line) error {
	var zones []string
	for _, word := range l.Words {
		for part := range strings.SplitSeq(word, ",") {
			if part == "" {
				continue
			}
			zone, ok, err := c.zone(l, part)
			if err != nil {
				return err
			}
			if ok {
				zones = append(zones, zone)
			}
		}
	}
	b := &block{cache: cachePolicy{most: cacheMost, mostDenial: cacheMostDenial, stale: cacheStale}}
	for i := range l.Block {
		if err := c.directive(b, &l.Block[i]); err != nil {
			return err
		}
	}
	if l.Block == nil {
		return l.Errorf("a server block has its directives in braces")
	}
	if b.autopath && b.kubernetes == nil {
		return l.Errorf("autopath @kubernetes needs the directive kubernetes beside it")
	}
	for _, zone := range zones {
		if slices.ContainsFunc(c.out.blocks, func(o *block) bool { return o.zone == zone }) {
			return l.Errorf("the zone %s has two server blocks", zone)
		}
		one := *b
		one.zone = zone
		c.out.blocks = append(c.out.blocks, &one)
	}
	return nil
}

// zone reads an address of a server block, "dns://example.org:53". ok is false if it is for another port.
func (c *compiler) zone(l *corefile.Line, text string) (zone string, ok bool, err error) {
	scheme, rest, has := strings.Cut(text, "://")
	if !has {
		rest = scheme
	} else if scheme != "dns" {
		return "", false, l.Errorf("%s is not served, only dns:// is", text)
	}
	if name, port, has := strings.Cut(rest, ":"); has {
		if port != "53" {
			c.note(l, "the server block of port "+port+" is left out: port 53 alone is served")
			return "", false, nil
		}
		if rest = name; rest == "" {
			rest = "."
		}
	}
	if prefix, err := netip.ParsePrefix(rest); err == nil {
		if rest, err = reverseZone(prefix); err != nil {
			return "", false, l.Errorf("%v", err)
		}
	}
	zone, err = canonical(rest)
	if err != nil {
		return "", false, l.Errorf("%v", err)
	}
	return zone, true, nil
}

// reverseZone is the zone of the addresses of a range.
func reverseZone(p netip.Prefix) (string, error) {
	step := 8
	if p.Addr().Is6() {
		step = 4
	}
	if p.Bits()%step != 0 {
		return "", fmt.Errorf("the range %s does not end at the border of a label", p)
	}
	arpa, err := dns.ReverseAddr(p.Addr().String())
	if err != nil {
		return "", err
	}
	labels := dns.SplitDomainName(arpa)
	return strings.Join(labels[(p.Addr().BitLen()-p.Bits())/step:], ".") + ".", nil
}

// canonical is a name in lower case with its final dot.
func canonical(name string) (string, error) {
	if _, ok := dns.IsDomainName(name); !ok || name == "" {
		return "", fmt.Errorf("%q is not a domain name", name)
	}
	return strings.ToLower(dns.Fqdn(name)), nil
}

func (c *compiler) note(l *corefile.Line, text string) {
	c.out.notes = append(c.out.notes, l.Errorf("%s", text).Error())
}

// directive compiles one line of a server block.
func (c *compiler) directive(b *block, l *corefile.Line) error {
	name, args := l.Words[0], l.Words[1:]
	if why, ok := ignored[name]; ok {
		if why == "" {
			why = "it has no meaning here"
		}
		c.note(l, name+" is passed over: "+why)
		return nil
	}
	switch name {
	case "errors":
		b.errors = true
		return nil
	case "log":
		b.log = true
		return nil
	case "autopath":
		if len(args) == 0 || args[len(args)-1] != "@kubernetes" {
			return l.Errorf("autopath takes @kubernetes, and no file")
		}
		b.autopath = true
		return nil
	case "kubernetes":
		return c.kubernetesDirective(b, l, args)
	case "hosts":
		return c.hostsDirective(b, l, args)
	case "rewrite":
		return c.rewriteDirective(b, l)
	case "forward", "proxy":
		return c.forwardDirective(b, l, args)
	case "cache":
		return cacheDirective(b, l, args)
	}
	return l.Errorf("the directive %q is not known", name)
}

func zones(l *corefile.Line, words []string) ([]string, error) {
	var out []string
	for _, w := range words {
		zone, err := canonical(w)
		if err != nil {
			return nil, l.Errorf("%v", err)
		}
		out = append(out, zone)
	}
	return out, nil
}

// fallthroughs reads the zones behind the word fallthrough: none means all.
func fallthroughs(l *corefile.Line) (through, error) {
	if len(l.Words) == 1 {
		return through{"."}, nil
	}
	return zones(l, l.Words[1:])
}

func seconds(l *corefile.Line, most int) (uint32, error) {
	if len(l.Words) == 2 {
		if n, err := strconv.Atoi(l.Words[1]); err == nil && n >= 0 && n <= most {
			return uint32(n), nil
		}
	}
	return 0, l.Errorf("%s takes one number of seconds from 0 to %d", l.Words[0], most)
}

func (c *compiler) kubernetesDirective(b *block, l *corefile.Line, args []string) error {
	if b.kubernetes != nil {
		return l.Errorf("kubernetes stands twice in the same server block")
	}
	k := &kubernetes{ttl: 5}
	names, err := zones(l, args)
	if err != nil {
		return err
	}
	if len(names) == 0 {
		names = []string{c.domain}
	}
	for _, name := range names {
		if dns.IsSubDomain("in-addr.arpa.", name) || dns.IsSubDomain("ip6.arpa.", name) {
			k.reverse = append(k.reverse, name)
		} else {
			k.zones = append(k.zones, zone{domain: name, rules: k})
		}
	}
	for i := range l.Block {
		o := &l.Block[i]
		switch o.Words[0] {
		case "pods":
			modes := map[string]podsMode{"disabled": podsDisabled, "insecure": podsInsecure, "verified": podsVerified}
			mode, ok := podsDisabled, false
			if len(o.Words) == 2 {
				mode, ok = modes[o.Words[1]]
			}
			if !ok {
				return o.Errorf("pods takes disabled, insecure or verified")
			}
			k.pods = mode
		case "ttl":
			if k.ttl, err = seconds(o, 3600); err != nil {
				return err
			}
		case "fallthrough":
			if k.fallthru, err = fallthroughs(o); err != nil {
				return err
			}
		case "endpoint_pod_names":
			k.podNames = true
		case "namespaces":
			k.only = map[string]bool{}
			for _, ns := range o.Words[1:] {
				k.only[ns] = true
			}
		case "ignore":
			if len(o.Words) != 2 || o.Words[1] != "empty_service" {
				return o.Errorf("ignore takes empty_service")
			}
			k.ignoreEmpty = true
		case "endpoint", "tls", "kubeconfig", "upstream", "startup_timeout", "apiserver_qps", "apiserver_burst", "apiserver_max_inflight", "resyncperiod":
			c.note(o, o.Words[0]+" is passed over: answers come from this cluster's own store")
		default:
			return o.Errorf("kubernetes has no option %q here", o.Words[0])
		}
	}
	b.kubernetes = k
	return nil
}

func cacheDirective(b *block, l *corefile.Line, args []string) error {
	p := cachePolicy{most: time.Hour, mostDenial: 30 * time.Minute, stale: 0}
	if len(args) > 0 {
		if n, err := strconv.Atoi(args[0]); err == nil {
			if n < 1 {
				return l.Errorf("cache takes a number of seconds above 0")
			}
			p.most = time.Duration(n) * time.Second
			p.mostDenial = min(p.mostDenial, p.most)
		}
	}
	for i := range l.Block {
		o := &l.Block[i]
		switch o.Words[0] {
		case "success", "denial":
			// CAPACITY [TTL] [MINTTL]: the capacity is one for everybody here.
			limit := 0
			if len(o.Words) > 2 {
				n, err := strconv.Atoi(o.Words[2])
				if err != nil || n < 1 {
					return o.Errorf("%s takes CAPACITY [TTL] [MINTTL]", o.Words[0])
				}
				limit = n
			}
			if limit > 0 && o.Words[0] == "success" {
				p.most = time.Duration(limit) * time.Second
			} else if limit > 0 {
				p.mostDenial = time.Duration(limit) * time.Second
			}
		case "serve_stale":
			p.stale = time.Hour
			if len(o.Words) > 1 {
				d, err := time.ParseDuration(o.Words[1])
				if err != nil || d < 0 {
					return o.Errorf("serve_stale takes a duration such as 1h")
				}
				p.stale = d
			}
		case "disable":
			for _, w := range o.Words[1:] {
				switch w {
				case "success":
					p.most = 0
				case "denial":
					p.mostDenial = 0
				default:
					if _, err := canonical(w); err != nil {
						return o.Errorf("disable takes success or denial")
					}
				}
			}
		case "prefetch", "servfail", "keepttl":
		default:
			return o.Errorf("cache has no option %q here", o.Words[0])
		}
	}
	b.cache = p
	return nil
}
