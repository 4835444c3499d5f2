import time
from tests.compat.conftest import *
def test_x(clients, make_server):
    o=clients.openstack()
    t=time.time()
    def p(l,who='admin'):
        t=time.time(); s=clients.openstack(who)(l); print(f'$ [{who}] {l} -> {s.code} {time.time()-t:.2f}s'); print(s.out[:3000].strip()); print('ERR '+s.error[:700] if s.error else '')
    p('compute service list','demo'); p('compute service list')
    import base64,os
    open('/tmp/compatwork/ud','w').write('hello=1\n')
    p('server create --image whimbrel-guest --flavor small --nic none --property a=b --user-data /tmp/compatwork/ud --config-drive true s1','demo')
    p('server create --image whimbrel-guest --flavor small --network private --host h2 --wait s2')
    p('server create --image whimbrel-guest --flavor small --host h2 s3','demo')
    p('server create --image whimbrel-guest --flavor small --nic none --host nohost s3')
    p('server create --image whimbrel-guest --flavor small --security-group default s3', 'demo')
    for l in ['server list','server list --long','server list -n','server list --name s --status ACTIVE','server list --limit 1','server list --flavor small','server list --image whimbrel-guest','server list --ip 10.98']: p(l,'demo')
    p('server list --limit 2 --marker s2'); p('server list --all-projects --host h2 --long'); p('server list --all-projects','demo'); p('server list --project demo'); p('server list --deleted')
    p('server show s1','demo'); p('server show s2'); p('server show s2','demo');
    p('server set --property c=d --description hoi s1','demo'); p('server unset --property a s1','demo'); p('server show s1 -c properties -c description','demo')
    p('server stop s1','demo'); import subprocess; time.sleep(1); p('server show s1 -c status','demo'); p('server start s1','demo'); time.sleep(1); p('server reboot s1','demo'); time.sleep(1); p('server reboot --hard s1','demo'); time.sleep(1); p('console log show s1','demo'); p('console log show --lines 2 s1','demo')
    p('server lock --reason r s1','demo'); p('server stop s1','demo'); p('server unlock s1','demo')
    p('server migrate s1','demo'); p('server migrate --host h1 s1','manager'); p('server migrate s1','reader'); p('server migrate s1','other'); p('server migrate s1','manager'); time.sleep(1.5); p('server show s1','manager'); p('server migration list','manager'); p('server migration list','demo'); p('server migration confirm s1','demo'); time.sleep(1)
    p('server migration list --server s1 --limit 1'); p('server event list s1','demo'); 
    rid=clients.openstack('demo').json('server event list s1')
    print(rid)
    for r in rid:
        if r['Action']=='migrate':
            p('server event show s1 '+r['Request ID'],'demo'); p('server event show s1 '+r['Request ID'],'admin')
    p('server migrate --host h2 s2'); p('server migrate --host nohost s2'); p('server resize --flavor small s2'); p('server resize --flavor nof s2'); p('server migration confirm s2');p('server resize confirm s2'); p('server resize --flavor medium s2'); time.sleep(1.5); p('server show s2'); p('server resize revert s2'); time.sleep(1.5); p('server show s2')
    p('server migration list'); p('server delete --wait s1','demo'); p('server delete --wait s2'); p('server event list s1','demo'); p('server list --all-projects'); p('server delete s3','demo')
