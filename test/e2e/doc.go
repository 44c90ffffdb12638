// Package e2e holds the main job from end to end: real agents, a real transport,
// machines that are not real. The same scenario runs on libvirt and QEMU in
// test/lab. What each test shows is in its comment; none needs root.
package e2e
