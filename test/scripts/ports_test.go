package scripts

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"sync/atomic"
)

// Ports of scripts lie below those that the kernel gives to whoever connects (net.ipv4.ip_local_port_range begins at 32768) and below those of
// NodePorts (30000): nobody takes one between the moment it is chosen and the moment a cluster listens at it.
const firstPort, lastPort = 16384, 29999

var nextPort atomic.Int64

func init() { nextPort.Store(rand.Int64N(lastPort - firstPort)) }

// freePort is a port that nobody listens at and that is given out once.
func freePort() (int, error) {
	for range 1000 {
		port := firstPort + int(nextPort.Add(1)%(lastPort-firstPort+1))
		if l, err := net.Listen("tcp", fmt.Sprintf(":%d", port)); err == nil {
			return port, l.Close()
		}
	}
	return 0, errors.New("no port is free")
}
