package cni

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"

	"coracle.dev/coracle/linux/link"
)

// Main carries out the command that the environment names, with the configuration from standard input, writes the result or the error to
// standard output, and returns the status to exit with.
func Main() int {
	funcs := skel.CNIFuncs{Add: add, Del: del, Check: check, GC: gc, Status: status}
	err := skel.PluginMainFuncsWithError(funcs, version.All, "CNI plugin coracle: the pods' network of a Coracle node")
	if err == nil {
		return 0
	}
	_ = err.Print()
	return 1
}

// backend is where links and addresses come from.
type backend interface {
	add(Attachment) (Given, error)
	del(Attachment) error
	// given is what an attachment has, nothing if it is unknown.
	given(Attachment) (Given, error)
	gc(Keep) error
	status() error
}

func (c *config) backend() backend {
	if c.DataDir != "" {
		return asked{instance{c.DataDir}}
	}
	return alone{c}
}

func attachment(c *config, args *skel.CmdArgs) Attachment {
	return Attachment{Network: c.Name, ContainerID: args.ContainerID, IfName: args.IfName, NetNS: args.Netns}
}

func add(args *skel.CmdArgs) error {
	c, err := parse(args.StdinData)
	if err != nil {
		return err
	}
	result, err := c.previous()
	if err != nil {
		return err
	}
	if result == nil {
		result = &types100.Result{CNIVersion: types100.ImplementedSpecVersion}
	}
	a := attachment(c, args)
	if _, there, err := link.Inspect(a.NetNS, a.IfName); err != nil {
		return failure(err)
	} else if there {
		// Of the same attachment this is a runtime's mistake too: a container is added to a network once.
		return types.NewError(types.ErrInvalidEnvironmentVariables, fmt.Sprintf("the container has a link %s already", a.IfName), "")
	}
	g, err := c.backend().add(a)
	if err != nil {
		return failure(err)
	}
	if err := describe(result, a, g); err != nil {
		return errors.Join(err, c.backend().del(a))
	}
	return types.PrintResult(result, c.CNIVersion)
}

// describe adds to a result what an attachment got.
func describe(result *types100.Result, a Attachment, g Given) error {
	host, _, err := link.Inspect("", g.HostLink)
	if err != nil {
		return err
	}
	end, _, err := link.Inspect(a.NetNS, a.IfName)
	if err != nil {
		return err
	}
	result.Interfaces = append(result.Interfaces,
		&types100.Interface{Name: g.HostLink, Mac: host.MAC, Mtu: host.MTU},
		&types100.Interface{Name: a.IfName, Mac: end.MAC, Mtu: end.MTU, Sandbox: a.NetNS})
	at := len(result.Interfaces) - 1
	for _, addr := range g.Addrs {
		gateway, everything := link.Gateway4, net.IPNet{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)}
		if addr.Is6() {
			gateway, everything = link.Gateway6, net.IPNet{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}
		}
		result.IPs = append(result.IPs, &types100.IPConfig{Interface: types100.Int(at), Gateway: gateway.AsSlice(),
			Address: net.IPNet{IP: addr.AsSlice(), Mask: net.CIDRMask(addr.BitLen(), addr.BitLen())}})
		result.Routes = append(result.Routes, &types.Route{Dst: everything, GW: gateway.AsSlice()})
	}
	return nil
}

func del(args *skel.CmdArgs) error {
	c, err := parse(args.StdinData)
	if err != nil {
		return err
	}
	return failure(c.backend().del(attachment(c, args)))
}

func check(args *skel.CmdArgs) error {
	c, err := parse(args.StdinData)
	if err != nil {
		return err
	}
	result, err := c.previous()
	if err != nil {
		return err
	}
	if result == nil {
		return types.NewError(types.ErrInvalidNetworkConfig, "CHECK needs the previous result", "")
	}
	a := attachment(c, args)
	g, err := c.backend().given(a)
	if err != nil {
		return failure(err)
	}
	return wrong(a, g, result)
}

// codeBroken is the plugin's own code of a CHECK that found something.
const codeBroken uint = 100

// wrong compares an attachment with the kernel and with what ADD said.
func wrong(a Attachment, g Given, said *types100.Result) error {
	broken := func(format string, args ...any) error {
		return types.NewError(codeBroken, fmt.Sprintf(format, args...), "delete the container's attachment and add it again")
	}
	if len(g.Addrs) == 0 {
		return broken("container %s is not attached as %s", a.ContainerID, a.IfName)
	}
	for _, addr := range g.Addrs {
		if !slices.ContainsFunc(said.IPs, func(ip *types100.IPConfig) bool { return ip.Address.IP.Equal(addr.AsSlice()) }) {
			return broken("the address %s is not in the previous result", addr)
		}
	}
	host, ok, err := link.Inspect("", g.HostLink)
	if err != nil {
		return failure(err)
	}
	if !ok || !host.Up {
		return broken("the link %s of the host is gone or down", g.HostLink)
	}
	end, ok, err := link.Inspect(a.NetNS, a.IfName)
	if err != nil {
		return failure(err)
	}
	if !ok || !end.Up {
		return broken("the link %s of the container is gone or down", a.IfName)
	}
	for _, addr := range g.Addrs {
		if !slices.Contains(end.Addrs, addr) {
			return broken("the link %s of the container has lost its address %s", a.IfName, addr)
		}
		if addr.Is4() && !end.Default4 || addr.Is6() && !end.Default6 {
			return broken("the container has lost the default route for %s", addr)
		}
	}
	return nil
}

func gc(args *skel.CmdArgs) error {
	c, err := parse(args.StdinData)
	if err != nil {
		return err
	}
	return failure(c.backend().gc(Keep{Network: c.Name, Valid: c.ValidAttachments}))
}

func status(args *skel.CmdArgs) error {
	c, err := parse(args.StdinData)
	if err != nil {
		return err
	}
	err = c.backend().status()
	switch {
	case err == nil:
		return nil
	case errors.Is(err, errNoInstance): // links are there, but nothing follows services and policies
		return types.NewError(types.ErrLimitedConnectivity, "the network is not kept", err.Error())
	}
	return types.NewError(types.ErrPluginNotAvailable, "no container can be attached", err.Error())
}

// failure gives an error the code that the specification has for it.
func failure(err error) error {
	var coded *types.Error
	switch {
	case err == nil:
		return nil
	case errors.As(err, &coded):
		return coded
	case errors.Is(err, errNoInstance):
		return types.NewError(types.ErrTryAgainLater, err.Error(), "start it with `coracle up`")
	case errors.Is(err, os.ErrNotExist):
		return types.NewError(types.ErrUnknownContainer, err.Error(), "")
	}
	return types.NewError(types.ErrInternal, err.Error(), "")
}

// asked is the backend of a running instance.
type asked struct{ instance }

func (b asked) add(a Attachment) (g Given, err error)   { return g, b.call("POST", "add", a, &g) }
func (b asked) given(a Attachment) (g Given, err error) { return g, b.call("POST", "check", a, &g) }
func (b asked) gc(k Keep) error                         { return b.call("POST", "gc", k, &struct{}{}) }
func (b asked) status() error                           { return b.call("GET", "status", struct{}{}, &struct{}{}) }

// del works without the instance too: what is attached is read from the kernel when it starts, so the link is all that there is.
func (b asked) del(a Attachment) error {
	err := b.call("POST", "del", a, &struct{}{})
	if !errors.Is(err, errNoInstance) {
		return err
	}
	data, err := os.ReadFile(filepath.Join(b.dataDir, "instance.json"))
	if errors.Is(err, os.ErrNotExist) {
		return nil // it was reset, and took its links along
	}
	var id struct {
		ID string `json:"id"`
	}
	if err == nil {
		err = json.Unmarshal(data, &id)
	}
	if err != nil {
		return err
	}
	return link.Remove(link.HostName(link.InstancePrefix(id.ID), a.Sandbox()))
}

// alone is the backend without an instance.
type alone struct{ *config }

// linkPrefix begins the names of host ends without an instance.
const linkPrefix = "ccni"

func (b alone) open() (*records, error) { return openRecords(b.IPAM.DataDir, b.Name) }

func (b alone) hostLink(a Attachment) string { return link.HostName(linkPrefix, a.Sandbox()) }

func (b alone) add(a Attachment) (Given, error) {
	if _, err := link.EnableForwarding(b.IPAM.Ranges...); err != nil {
		return Given{}, err
	}
	r, err := b.open()
	if err != nil {
		return Given{}, err
	}
	defer r.close()
	addrs, err := r.take(a.Sandbox(), b.IPAM.Ranges)
	if err != nil {
		return Given{}, err
	}
	g := Given{Addrs: addrs, HostLink: b.hostLink(a)}
	err = link.Create(link.Pair{Host: g.HostLink, Inside: a.IfName, Alias: a.Sandbox(), NetNS: a.NetNS, Addrs: addrs, MTU: b.MTU})
	if err != nil {
		return g, errors.Join(err, r.free(func(o string) bool { return o == a.Sandbox() }))
	}
	return g, nil
}

func (b alone) del(a Attachment) error {
	r, err := b.open()
	if err != nil {
		return err
	}
	defer r.close()
	if err := link.Remove(b.hostLink(a)); err != nil {
		return err
	}
	return r.free(func(o string) bool { return o == a.Sandbox() })
}

func (b alone) given(a Attachment) (Given, error) {
	r, err := b.open()
	if err != nil {
		return Given{}, err
	}
	defer r.close()
	all, err := r.all()
	g := Given{HostLink: b.hostLink(a)}
	for addr, owner := range all {
		if owner == a.Sandbox() {
			g.Addrs = append(g.Addrs, addr)
		}
	}
	slices.SortFunc(g.Addrs, netip.Addr.Compare)
	return g, err
}

func (b alone) gc(k Keep) error {
	r, err := b.open()
	if err != nil {
		return err
	}
	defer r.close()
	found, err := link.Pairs(linkPrefix)
	if err != nil {
		return err
	}
	for _, f := range found {
		if stale(f.Alias, k) {
			err = errors.Join(err, link.Remove(f.Host))
		}
	}
	if err != nil {
		return err // the addresses are not free
	}
	return r.free(func(o string) bool { return stale(o, k) })
}

func (b alone) status() error {
	r, err := b.open()
	if err != nil {
		return err
	}
	defer r.close()
	used, err := r.all()
	if err != nil {
		return err
	}
	for _, p := range b.IPAM.Ranges {
		if _, err := r.next("", p, used); err != nil {
			return err
		}
	}
	return nil
}
