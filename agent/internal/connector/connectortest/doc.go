// Package connectortest is the suite that every connector is held to, against
// the real server software on loopback.
package connectortest
