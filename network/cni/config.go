package cni

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"
)

// PluginType is the type by which configurations name the plugin, and the name of its file.
const PluginType = "coracle"

// config is what stands in a network's configuration.
type config struct {
	types.PluginConf
	// DataDir is that of the instance whose network it is.
	DataDir string `json:"dataDir"`
	// MTU of links without an instance, in bytes; the kernel's default if 0.
	MTU  int  `json:"mtu"`
	IPAM ipam `json:"ipam"`
}

// ipam says which addresses the plugin gives out itself.
type ipam struct {
	// Ranges are at most one of each family.
	Ranges []netip.Prefix `json:"ranges"`
	// DataDir is where it is recorded which are given out, DefaultRecords if empty.
	DataDir string `json:"dataDir"`
}

// DefaultRecords is where the plugin records what it gave out.
const DefaultRecords = "/var/lib/cni/coracle"

// parse reads a configuration, with the previous result if there is one.
func parse(data []byte) (*config, error) {
	var c config
	if err := json.Unmarshal(data, &c); err != nil {
		return nil, types.NewError(types.ErrDecodingFailure, "the network's configuration cannot be read", err.Error())
	}
	if err := c.check(); err != nil {
		return nil, types.NewError(types.ErrInvalidNetworkConfig, "the network's configuration is wrong", err.Error())
	}
	if c.IPAM.DataDir == "" {
		c.IPAM.DataDir = DefaultRecords
	}
	if c.RawPrevResult != nil {
		if err := version.ParsePrevResult(&c.PluginConf); err != nil {
			return nil, types.NewError(types.ErrDecodingFailure, "the previous result cannot be read", err.Error())
		}
	}
	return &c, nil
}

func (c *config) check() error {
	switch {
	case c.DataDir == "" && len(c.IPAM.Ranges) == 0:
		return errors.New(`it has neither "dataDir", that of a running instance, nor "ipam" with "ranges"`)
	case c.DataDir != "" && len(c.IPAM.Ranges) > 0:
		return errors.New(`"dataDir" and "ipam" with "ranges" exclude each other`)
	case c.DataDir != "" && !filepath.IsAbs(c.DataDir):
		return fmt.Errorf("dataDir: %q is not an absolute path", c.DataDir)
	case len(c.IPAM.Ranges) > 2 || len(c.IPAM.Ranges) == 2 && c.IPAM.Ranges[0].Addr().Is4() == c.IPAM.Ranges[1].Addr().Is4():
		return errors.New("ipam.ranges: give one range, or one of IPv4 and one of IPv6")
	}
	for _, r := range c.IPAM.Ranges {
		if !r.IsValid() || r.Masked() != r || r.Addr().BitLen()-r.Bits() < 2 {
			return fmt.Errorf("ipam.ranges: %s is not a range such as 10.88.0.0/24", r)
		}
	}
	return nil
}

// previous is the result of the chain so far, nil if there is none.
func (c *config) previous() (*types100.Result, error) {
	if c.PrevResult == nil {
		return nil, nil
	}
	r, err := types100.NewResultFromResult(c.PrevResult)
	if err != nil {
		return nil, types.NewError(types.ErrDecodingFailure, "the previous result cannot be read", err.Error())
	}
	return r, nil
}
