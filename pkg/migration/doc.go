// Package migration moves running guests between two hosts: the source conducts,
// the destination prepares, takes over and owns. It knows no transport and no
// driver: what it needs of the world stands in ports.go.
package migration
