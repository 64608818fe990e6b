module github.com/sallyport-pki/sallyport/tests

go 1.26

require (
	github.com/sallyport-pki/sallyport/agent v0.0.0
	github.com/sallyport-pki/sallyport/auditlog v0.0.0
	github.com/sallyport-pki/sallyport/gen v0.0.0
	github.com/sallyport-pki/sallyport/internal v0.0.0
	github.com/sallyport-pki/sallyport/pebbletest v0.0.0
	github.com/sallyport-pki/sallyport/services/audit v0.0.0
	github.com/sallyport-pki/sallyport/services/deployer v0.0.0
	github.com/sallyport-pki/sallyport/services/internal v0.0.0
	github.com/sallyport-pki/sallyport/services/inventory v0.0.0
	github.com/sallyport-pki/sallyport/services/issuer v0.0.0
	golang.org/x/sys v0.49.0
	google.golang.org/grpc v1.85.0
	google.golang.org/protobuf v1.36.12
)

replace (
	github.com/sallyport-pki/sallyport/agent => ../agent
	github.com/sallyport-pki/sallyport/auditlog => ../auditlog
	github.com/sallyport-pki/sallyport/gen => ../gen
	github.com/sallyport-pki/sallyport/internal => ../internal
	github.com/sallyport-pki/sallyport/pebbletest => ../pebbletest
	github.com/sallyport-pki/sallyport/services/audit => ../services/audit
	github.com/sallyport-pki/sallyport/services/deployer => ../services/deployer
	github.com/sallyport-pki/sallyport/services/internal => ../services/internal
	github.com/sallyport-pki/sallyport/services/inventory => ../services/inventory
	github.com/sallyport-pki/sallyport/services/issuer => ../services/issuer
)
