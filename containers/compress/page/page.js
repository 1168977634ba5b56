// Starts the viewer on the files beside this page, or in it (scene.html). Nothing in the address can make it load anything else.
import { createViewer } from './index.js';

const inside = JSON.parse(document.getElementById('files')?.textContent ?? '{}');
const here = (name) => inside[name] ?? new URL(name, import.meta.url).href;
const flags = new URL(location.href).searchParams;

// Nobody has chosen yet whether the list of controls is open: the scene comes first, a button opens the list.
const closeControlsOnce = () => {
    try {
        if (localStorage.getItem('controlsPanelOpen') === null) {
            localStorage.setItem('controlsPanelOpen', 'false');
        }
    } catch (error) {
        console.info('no storage for preferences', error);
    }
};

const report = (text) => {
    const problem = document.getElementById('problem');
    problem.textContent = text;
    problem.hidden = false;
};

const load = async (name) => {
    const response = await fetch(here(name));
    if (!response.ok) {
        throw new Error(`${name} could not be loaded (HTTP ${response.status})`);
    }
    return response;
};

const start = async () => {
    document.body.classList.toggle('bare', flags.has('noui'));
    closeControlsOnce();
    const contents = load('scene.sog');
    const settings = load('settings.json').then((response) => response.json());
    await Promise.all([contents, settings]);
    const viewer = await createViewer({
        container: document.body,
        settings,
        contents,
        contentUrl: here('scene.sog'),
        contentFilename: 'scene.sog',
        posterUrl: here('poster.jpg'),
        renderer: flags.has('webgl') ? 'webgl' : 'webgpu',
        ui: !flags.has('noui'),
        noanim: true,
        exposeGlobals: true
    });
    // The viewer offers flying when it starts inside the scene's bounds, which is always so outdoors; people expect that
    // the scene turns under the mouse.
    viewer.events.once('firstFrame', () => {
        viewer.state.cameraMode = 'orbit';
        document.body.classList.add('ready');
    });
};

start().catch((error) => {
    console.error(error);
    report(`The scene cannot be shown: ${error.message}. Reload the page; if that does not help, download the scene above.`);
});
