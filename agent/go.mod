module github.com/sallyport-pki/sallyport/agent

go 1.26
