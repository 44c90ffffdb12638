// Package libvirt is the real driver: libvirt and QEMU through go-libvirt, which
// this package alone imports. It needs libvirt 7.0 and QEMU 5.2 or newer
// (Debian 12 has 9.0 and 7.2) and keeps the promises of package virt.
//
// # Connections
//
// libvirtd serves five requests of a connection at a time and go-libvirt knows no
// deadline, so there are several connections by duty, each with at most four
// calls in flight:
//
//	events    subscriptions and a ping; its loss is the loss of the hypervisor
//	control   everything that is short: look-ups, statistics, abort, destroy
//	blocking  what may take long: start, save, restore, shutdown
//	migration one of its own for each perform, at most MaxMigrations
//
// One owner connects, subscribes, says EventConnected, watches, says
// EventDisconnected and begins again with growing, jittered sleeps. Meanwhile every call answers
// unavailable at once.
//
// # Deadlines
//
// Every call has a bound. A caller whose context or bound ends is answered at
// once; a call that is over its bound takes its connection out of service: the
// next call dials a new one, the neighbours end on the old one, and then it is
// closed, which is the only way to end the call. libvirtd may still carry the
// call out, so a timeout says nothing about its effect.
//
// # Events
//
// go-libvirt hands out one stream per kind of event, which loses the order among
// kinds, queues without limit and wedges when a subscription is cancelled. So
// packets are read by this package as they pass from the socket to go-libvirt:
// events are decoded here, in order, and everything else goes on untouched. A
// packet with an impossible length, which would panic go-libvirt, ends the
// connection.
package libvirt
